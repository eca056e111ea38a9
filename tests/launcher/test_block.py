"""The block that `up` ends with: its examples are whole when pasted."""

import ast
import json
import shlex
from pathlib import Path

from config.home import Home
from config.launcher.block import block
from config.launcher.installation import Installation, Options

CREDENTIALS = {
    "admin_url": "http://127.0.0.1:8000/admin/",
    "admin_user": "admin",
    "admin_password": "secret",
    "api_base": "http://127.0.0.1:8000/api/v1",
    "gateway_base": "http://127.0.0.1:8080/v1",
    "api_key": "sk-stk-abc",
    "model": "tiny",
}


def make_block(**changes: object) -> str:
    return block(CREDENTIALS | changes, Installation(Home(Path("/h")), Options()), foreground=False)


def test_the_curl_example_is_one_valid_command() -> None:
    lines = make_block().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("curl "))
    words = shlex.split("\n".join(lines[start : start + 3]))
    assert words[1] == "http://127.0.0.1:8080/v1/chat/completions"
    assert json.loads(words[words.index("-d") + 1])["model"] == "tiny"


def test_the_python_example_can_be_pasted() -> None:
    text = make_block()
    code = text[
        text.index("from openai import") : text.index("print(") + len("print(answer.choices[0].message.content)")
    ]
    ast.parse(code)
    assert 'api_key="sk-stk-abc"' in code


def test_without_a_demo_there_is_no_key_and_no_example() -> None:
    text = make_block(api_key=None, model=None)
    assert "curl" not in text
    assert "http://127.0.0.1:8000/admin/" in text


def test_a_password_made_elsewhere_is_not_invented() -> None:
    assert "changepassword" in make_block(admin_password=None)
