"""OpenAI's SDK for Python: everything that an engine offers, and every error as its class."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.conformance.service import Service

pytestmark = pytest.mark.asyncio

ASK: dict[str, Any] = {
    "model": "chat",
    "messages": [{"role": "user", "content": "Say hi"}],
    "max_tokens": 12,
    "temperature": 0.0,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "age"],
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
}


def client_of(service: Service, key: str = "", **options: Any) -> openai.AsyncOpenAI:
    settings = {"max_retries": 0, **options}
    return openai.AsyncOpenAI(base_url=service.base_url, api_key=key or service.world.secret, **settings)


async def test_chats_of_every_kind(service: Service) -> None:
    client = client_of(service)
    whole = await client.chat.completions.create(**ASK, seed=1, logprobs=True, top_logprobs=2, stop=["\n\n\n"])
    assert (whole.model, whole.choices[0].finish_reason) == ("chat", "length")
    assert whole.choices[0].logprobs.content
    text = whole.choices[0].message.content

    pieces = [chunk async for chunk in await client.chat.completions.create(**ASK, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == text
    assert all(chunk.choices and chunk.usage is None for chunk in pieces)

    asked = await client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    *_, last = [chunk async for chunk in asked]
    assert (last.choices, last.usage.completion_tokens) == ([], whole.usage.completion_tokens)

    two = await client.chat.completions.create(**{**ASK, "temperature": 1.0}, n=2)
    assert [choice.index for choice in two.choices] == [0, 1]

    schema = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    person = await client.chat.completions.create(**{**ASK, "max_tokens": 80}, response_format=schema)
    assert set(json.loads(person.choices[0].message.content)) == {"name", "age"}

    old = await client.completions.create(model="chat", prompt="Once upon", max_tokens=5)
    assert old.choices[0].text


async def test_tools_of_a_model_that_calls_them_and_of_one_that_does_not(service: Service) -> None:
    client = client_of(service)
    ask = {**ASK, "model": "caller", "tools": [TOOL], "tool_choice": "required"}
    answer = await client.chat.completions.create(**ask)
    [call] = answer.choices[0].message.tool_calls
    assert (answer.choices[0].finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}

    chunks = [chunk async for chunk in await client.chat.completions.create(**ask, stream=True)]
    pieces = [item for chunk in chunks for item in chunk.choices[0].delta.tool_calls or ()]
    assert pieces[0].function.name == "weather"
    assert "".join(piece.function.arguments or "" for piece in pieces) == call.function.arguments

    messages = [
        *ASK["messages"],
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    told = await client.chat.completions.create(**{**ASK, "messages": messages}, tools=[TOOL])
    assert told.choices[0].message.content is not None


async def test_responses_embeddings_and_models(service: Service) -> None:
    client = client_of(service)
    answer = await client.responses.create(model="chat", input="Say hi", max_output_tokens=8)
    assert (answer.model, answer.object) == ("chat", "response")
    assert answer.usage.output_tokens == 8
    kinds = {
        event.type
        async for event in await client.responses.create(model="chat", input="Hi", max_output_tokens=8, stream=True)
    }
    assert {"response.created", "response.output_text.delta"} <= kinds

    for form in ("float", "base64"):
        found = await client.embeddings.create(model="embed", input=["a cat", "a dog"], encoding_format=form)
        assert [item.index for item in found.data] == [0, 1]
        assert found.usage.prompt_tokens > 0

    assert {model.id async for model in client.models.list()} >= {"chat", "embed", "down"}
    assert (await client.models.retrieve("chat")).id == "chat"


async def test_every_error_has_its_class_and_code(service: Service) -> None:
    client = client_of(service)
    long = {"messages": [{"role": "user", "content": "word " * 3000}]}
    cases: list[tuple[openai.AsyncOpenAI, dict[str, Any], type[openai.APIStatusError], str]] = [
        (client_of(service, "sk-stk-nothere1-x"), {}, openai.AuthenticationError, "invalid_api_key"),
        (client_of(service, service.narrow), {}, openai.PermissionDeniedError, "model_not_allowed"),
        (client_of(service, service.used_up), {}, openai.RateLimitError, "rate_limit_exceeded"),
        (client, {"model": "nothing"}, openai.NotFoundError, "model_not_found"),
        (client, {"model": "embed"}, openai.BadRequestError, "unsupported_by_model"),
        (client, long, openai.BadRequestError, "context_length_exceeded"),
        (client, {"messages": []}, openai.BadRequestError, ""),
        (client, {"model": "down"}, openai.InternalServerError, "model_not_ready"),
    ]
    for who, changes, kind, code in cases:
        with pytest.raises(kind) as error:
            await who.chat.completions.create(**{**ASK, **changes})
        assert type(error.value) is kind
        assert error.value.code == code or not code
        assert error.value.request_id
        assert error.value.response.headers.get("retry-after") or kind not in (
            openai.RateLimitError,
            openai.InternalServerError,
        )


async def test_ids_limits_time_outs_and_cancelling(service: Service) -> None:
    client = client_of(service)
    raw = await client.chat.completions.with_raw_response.create(**ASK, extra_headers={"x-request-id": "my-own-id"})
    assert raw.headers["x-request-id"] == "my-own-id"
    limited = await client_of(service, service.used_up).models.with_raw_response.list()
    assert limited.status_code == 200

    with pytest.raises(openai.APITimeoutError):
        await client_of(service, timeout=0.05).chat.completions.create(**{**ASK, "max_tokens": 400})

    async for _ in await client.chat.completions.create(**{**ASK, "max_tokens": 900}, stream=True):
        break  # the SDK closes the connection
    assert (await client.chat.completions.create(**ASK)).choices


async def test_the_sdks_own_retries_find_a_model_that_comes_up(service: Service) -> None:
    client = client_of(service, max_retries=5)
    asked = asyncio.create_task(client.chat.completions.create(**{**ASK, "model": "down"}))
    await asyncio.sleep(0.3)
    target = service.chat.targets
    await service.world.route(type(service.chat)(id="down", created=1, targets=target, endpoints=("chat",)))
    assert (await asked).choices


async def test_twenty_streams_at_once(service: Service) -> None:
    client = client_of(service)

    async def one(number: int) -> int:
        ask = {**ASK, "messages": [{"role": "user", "content": f"Say {number}"}]}
        return len([chunk async for chunk in await client.chat.completions.create(**ask, stream=True)])

    counts = await asyncio.gather(*(one(number) for number in range(20)))
    assert min(counts) > 1
