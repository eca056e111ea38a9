"""Examples that work when pasted, whatever the model is called."""

import ast
import json
import shlex

import pytest

from apikeys.models import ApiKey
from apikeys.snippets import snippets

ODD = ["smollm2", "it's", 'a"b', "$(reboot)", "`id`", "x\\y", "日本", "'; rm -rf ~; '"]


@pytest.mark.parametrize("name", ODD)
def test_the_shell_and_python_read_the_name_as_it_is(name, settings):
    settings.GATEWAY_BASE_URL = "http://gateway.test/v1"
    made = snippets(ApiKey(id="aaaaaaaa", allowed_models=[name]), "sk-stk-aaaaaaaa-secret")
    words = shlex.split(made.curl.replace("\\\n", " "))
    assert words[:2] == ["curl", "http://gateway.test/v1/chat/completions"]
    assert "Authorization: Bearer sk-stk-aaaaaaaa-secret" in words
    assert json.loads(words[-1])["model"] == name
    for program in (made.python, made.langchain):
        texts = {node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)}
        assert {name, "http://gateway.test/v1", "sk-stk-aaaaaaaa-secret"} <= texts


def test_the_environment_gives_each_sdk_the_address_that_it_wants(settings):
    settings.GATEWAY_BASE_URL = "http://gateway.test/v1"
    lines = snippets(ApiKey(id="aaaaaaaa"), "sk-stk-aaaaaaaa-secret").env.splitlines()
    assert "export OPENAI_BASE_URL=http://gateway.test/v1" in lines
    assert "export ANTHROPIC_BASE_URL=http://gateway.test" in lines
    assert sum(line.endswith("=sk-stk-aaaaaaaa-secret") for line in lines) == 2


def test_every_example_has_the_key_in_it():
    shown = snippets(ApiKey(id="aaaaaaaa"), "sk-stk-aaaaaaaa-secret").shown()
    assert [name for name, _, text in shown if "sk-stk-aaaaaaaa-secret" in text] == [name for name, _, _ in shown]


def test_without_a_list_of_models_a_placeholder_stands_there():
    assert '"model": "MODEL"' in snippets(ApiKey(id="aaaaaaaa"), "sk").curl
    assert '"model": "other"' in snippets(ApiKey(id="aaaaaaaa"), "sk", model="other").curl


def test_without_the_key_the_examples_take_it_from_the_environment(settings):
    made = snippets(ApiKey(id="aaaaaaaa"))
    assert "Bearer $STOKEHOLD_KEY" in made.curl
    assert 'os.environ["STOKEHOLD_KEY"]' in made.python
    ast.parse(made.python)
    assert "process.env.STOKEHOLD_KEY" in made.javascript
