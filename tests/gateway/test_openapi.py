"""The OpenAPI document tells of every endpoint of the gateway, is valid, and its schemas take what clients send."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.calls import Endpoint
from gateway.openapi import ABOUT, ERRORS, document

SOURCES = Path(__file__).parents[2] / "gateway"


def validator(name: str) -> Draft202012Validator:
    """Of one schema, which may name the others."""
    made = document()
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": made["components"]})


def test_it_is_valid_openapi_and_plain_json() -> None:
    made = json.loads(json.dumps(document("http://gateway.test")))
    assert [str(error) for error in OpenAPIV31SpecValidator(made).iter_errors()] == []
    assert made["servers"] == [{"url": "http://gateway.test"}]


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_every_endpoint_is_in_it_with_all_errors(endpoint: Endpoint) -> None:
    operation = document()["paths"][endpoint.value]["post"]
    assert operation["responses"].keys() == {"200", *(str(status) for status in ERRORS)}


def test_it_tells_of_no_endpoint_that_is_not_served() -> None:
    posts = {path for path, item in document()["paths"].items() if "post" in item}
    assert posts == {endpoint.value for endpoint in Endpoint} <= set(ABOUT)


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for item in document()["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


def test_the_codes_that_it_names_are_those_that_the_code_gives() -> None:
    given = set(
        re.findall(
            r"[a-z]+(?:_[a-z]+)+",
            " ".join(path.read_text() for path in SOURCES.rglob("*.py") if not path.name.startswith("openapi")),
        )
    )
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", " ".join(ERRORS.values())))
    assert named <= given, sorted(named - given)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "chat", "messages": [{"role": "user", "content": "hi"}]},
        {"model": "chat", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "min_p": 0.1},
        {"model": "chat", "messages": [{"role": "tool", "tool_call_id": "1", "content": ""}], "stop": ["a"]},
    ],
)
def test_the_chat_schema_takes_what_clients_send_and_engines_alone_know(body: dict[str, Any]) -> None:
    validator("ChatRequest").validate(body)


@pytest.mark.parametrize("body", [{"model": "chat"}, {"model": "", "messages": [{"role": "user"}]}, {"messages": []}])
def test_the_chat_schema_refuses_what_the_gateway_refuses(body: dict[str, Any]) -> None:
    assert not validator("ChatRequest").is_valid(body)
