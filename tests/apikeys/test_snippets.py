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
    texts = {node.value for node in ast.walk(ast.parse(made.python)) if isinstance(node, ast.Constant)}
    assert {name, "http://gateway.test/v1", "sk-stk-aaaaaaaa-secret"} <= texts


def test_without_a_list_of_models_a_placeholder_stands_there():
    assert '"model": "MODEL"' in snippets(ApiKey(id="aaaaaaaa"), "sk").curl
    assert '"model": "other"' in snippets(ApiKey(id="aaaaaaaa"), "sk", model="other").curl
