"""Anthropic's SDK as a client: of an engine with the Messages API of its own, and of one that has only chat."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import msgspec
import pytest

from gateway.home import own_host_id
from tests.fakes.engine import FakeEngine, running_engine
from tests.gateway.master import make_route, make_target
from tests.gateway.test_llama_server import llama_server
from tests.gateway.world import World
from wire.feed import Limits

pytestmark = pytest.mark.asyncio

CHAT_ONLY = ("chat", "completions")
ASK: dict[str, Any] = {"max_tokens": 8, "messages": [{"role": "user", "content": "Say hi"}]}
SEARCH: Any = {"type": "web_search_20250305", "name": "web_search"}


def client_of(world: World) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=world.base, api_key=world.secret, max_retries=0)


def total(usage: Any) -> tuple[int, int]:
    """(prompt tokens with those from the cache, completion tokens)."""
    return usage.input_tokens + (usage.cache_read_input_tokens or 0), usage.output_tokens


@pytest.mark.parametrize("endpoints", [("chat", "messages"), CHAT_ONLY])
async def test_messages_streams_and_counts_of_a_real_engine(world: World, endpoints: tuple[str, ...]) -> None:
    async with llama_server() as port, client_of(world) as client:
        target = make_target(port, own_host_id(), engine_model="smol")
        await world.route(make_route("SmolLM2", target, endpoints=endpoints))
        ask = {**ASK, "model": "SmolLM2", "extra_body": {"temperature": 0.0}, "system": "Be brief."}

        message = await client.messages.create(**ask)
        assert (message.model, message.role, message.stop_reason) == ("SmolLM2", "assistant", "max_tokens")
        told = [total(message.usage)]

        async with client.messages.stream(**ask) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        assert text == final.content[0].text
        assert text == message.content[0].text
        assert (final.model, final.stop_reason) == ("SmolLM2", "max_tokens")
        told.append(total(final.usage))
        assert told[1] == told[0]

        counted = await client.messages.count_tokens(model="SmolLM2", messages=ASK["messages"], system="Be brief.")
        assert counted.input_tokens == told[0][0]
        if endpoints == CHAT_ONLY:  # the engine has read the prompt for it
            told.append((counted.input_tokens, 1))

        rows = await world.usage(3)
        assert sum(row.prompt_tokens for row in rows) == sum(item[0] for item in told)
        assert sum(row.completion_tokens for row in rows) == sum(item[1] for item in told)


async def test_the_route_that_serves_decides_what_is_sent(world: World) -> None:
    async with running_engine(FakeEngine()) as spare:
        here = own_host_id()
        await world.route(
            make_route("chat", make_target(spare.port, here), endpoints=CHAT_ONLY),
            make_route("public", fallbacks=("chat",), endpoints=("chat", "messages")),
        )
        async with client_of(world) as client:
            message = await client.messages.create(model="public", **ASK)
    assert message.content[0].text == "Hello wörld ✓"
    assert message.model == "public"
    [sent] = spare.requests
    assert sent["messages"] == ASK["messages"]


async def test_quota_is_reserved_and_settled_for_what_is_translated(world: World) -> None:
    await world.route(make_route("public", make_target(world.engine.port, own_host_id()), endpoints=CHAT_ONLY))
    await world.limit(Limits(tokens_per_minute=40))
    async with client_of(world) as client:
        await client.messages.create(model="public", **ASK)
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(model="public", **{**ASK, "max_tokens": 30})
        assert caught.value.response.headers["retry-after"]
        assert caught.value.response.headers["request-id"] == caught.value.response.headers["x-request-id"]
    assert world.engine.requests[0]["max_tokens"] == 8


async def test_a_stream_that_breaks_off_raises_in_the_sdk(world: World) -> None:
    await world.route(make_route("public", make_target(world.engine.port, own_host_id()), endpoints=CHAT_ONLY))
    world.engine.cut_after = 3
    async with client_of(world) as client, client.messages.stream(model="public", **ASK) as stream:
        with pytest.raises(anthropic.APIStatusError, match="broke off"):
            await stream.until_done()
    [row] = await world.usage()
    assert (row.status, row.completion_tokens) == (502, 2)


async def test_errors_raise_the_sdks_own_exceptions(world: World) -> None:
    await world.route(
        make_route("public", make_target(world.engine.port, own_host_id()), endpoints=CHAT_ONLY),
        make_route("vectors", make_target(world.engine.port, own_host_id()), endpoints=("embeddings",)),
    )
    async with client_of(world) as client:
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="nope", **ASK)
        with pytest.raises(anthropic.BadRequestError, match="What it can: make embeddings"):
            await client.messages.create(model="vectors", **ASK)
        with pytest.raises(anthropic.BadRequestError, match="web_search"):
            await client.messages.create(model="public", tools=[SEARCH], **ASK)
        with pytest.raises(anthropic.AuthenticationError):
            await client.with_options(api_key="sk-x").messages.create(model="public", **ASK)
        world.engine.fail = (400, {"error": {"message": "the maximum context length is 5", "code": 400}})
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.create(model="public", **ASK)
        assert json.loads(caught.value.response.content)["error"]["type"] == "invalid_request_error"
        world.engine.fail = (200, "no JSON")
        with pytest.raises(anthropic.InternalServerError):
            await client.messages.create(model="public", **ASK)


async def test_a_key_for_messages_alone_may_use_a_model_that_has_only_chat(world: World) -> None:
    await world.route(make_route("public", make_target(world.engine.port, own_host_id()), endpoints=CHAT_ONLY))
    await world.push(keys=(msgspec.structs.replace(world.key, endpoints=("messages",)),))
    async with client_of(world) as client:
        await client.messages.create(model="public", **ASK)
    async with world.post() as response:
        assert response.status == 403
