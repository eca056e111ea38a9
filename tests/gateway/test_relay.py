"""Requests that go well, and what engines do in between."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.gateway.world import World

pytestmark = pytest.mark.asyncio


async def events(response: Any) -> list[Any]:
    """Data of all events of a stream."""
    text = (await response.read()).decode()
    parts = [part for part in text.replace("\r\n", "\n").split("\n\n") if part.strip()]
    return [
        part.removeprefix("data: ") if "[DONE]" in part else json.loads(part.removeprefix("data: ")) for part in parts
    ]


def text_of(chunks: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or "" for item in chunks if isinstance(item, dict) for choice in item["choices"]
    )


async def test_a_whole_answer_comes_under_the_public_name_and_is_metered(world: World) -> None:
    async with world.post() as response:
        answer = await response.json()
    assert response.status == 200
    assert answer["model"] == "public"
    assert answer["choices"][0]["message"]["content"] == "Hello wörld ✓"
    assert world.engine.requests[0]["model"] == "engine-model"
    [row] = await world.usage()
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.status) == (11, 3, 5, 200)
    assert (row.key_id, row.project_id, row.model) == (world.key.id, "p1", "public")


async def test_a_stream_without_asking_for_usage_is_metered_and_gets_no_usage_chunk(world: World) -> None:
    async with world.post(world.ask(stream=True)) as response:
        chunks = await events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert chunks[-1] == "[DONE]"
    assert text_of(chunks) == "Hello wörld ✓"
    assert all(item["model"] == "public" and item["choices"] for item in chunks[:-1])
    assert world.engine.requests[0]["stream_options"] == {"include_usage": True}
    [row] = await world.usage()
    assert (row.prompt_tokens, row.completion_tokens) == (11, 5)


async def test_a_stream_with_usage_asked_for_keeps_its_usage_chunk(world: World) -> None:
    async with world.post(world.ask(stream=True, stream_options={"include_usage": True})) as response:
        chunks = await events(response)
    assert chunks[-2]["usage"]["completion_tokens"] == 5
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["model"] == "public"


async def test_many_requests_at_once_are_all_counted(world: World) -> None:
    async def one(number: int) -> int:
        async with world.post(world.ask(stream=bool(number % 2))) as response:
            await response.read()
            return int(response.status)

    assert set(await asyncio.gather(*(one(n) for n in range(100)))) == {200}
    rows = await world.usage(100)
    assert sum(row.requests for row in rows) == 100
    assert sum(row.completion_tokens for row in rows) == 500


async def test_the_gateway_describes_itself(world: World) -> None:
    async with world.client.get(world.base + "/openapi.json") as response:
        document = await response.json()
    assert document["openapi"].startswith("3.1")
    assert "/v1/chat/completions" in document["paths"]
