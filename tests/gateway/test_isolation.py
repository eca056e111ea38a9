"""Nothing of one client ever reaches another: many at once, on shared engine connections, some of which break."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from gateway.home import own_host_id
from tests.fakes.engine import chunk, event
from tests.gateway.master import make_route, make_target, until
from tests.gateway.world import CHAT, World
from tests.ports import free_port

pytestmark = pytest.mark.asyncio

CLIENTS, TURNS = 40, 8


@asynccontextmanager
async def echoing_engine(seed: int) -> AsyncIterator[int]:
    """Answers each request with its own mark over and over; leaves, cuts and pauses at random. Yields its port."""
    chance = random.Random(seed)

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        mark = body["messages"][0]["content"]
        count = chance.randint(1, 30)
        if not body.get("stream"):
            if chance.random() < 0.1 and request.transport is not None:
                request.transport.abort()
            text = mark * count
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 1, "completion_tokens": count}
            return web.json_response({"id": "c", "model": "m", "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(count):
            piece = event(chunk(mark, "m"))
            at = chance.randint(0, len(piece))
            for part in (piece[:at], piece[at:]):  # events break anywhere
                if part:
                    await response.write(part)
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() * 0.003)
            if chance.random() < 0.01 and request.transport is not None:
                request.transport.abort()
                return response
        await response.write(event("[DONE]"))
        return response

    app = web.Application()
    app.router.add_post(CHAT, handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


async def one_turn(world: World, mark: str, chance: random.Random) -> str:
    """All text that came back, however the request ended."""
    text = ""
    stream = chance.random() < 0.7
    body = {"model": "public", "stream": stream, "messages": [{"role": "user", "content": mark}]}
    leave_after = chance.randint(1, 10) if chance.random() < 0.2 else None
    with contextlib.suppress(aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
        async with world.post(body) as response:
            if not stream or response.status != 200:
                data = await response.json()
                return "".join(choice["message"]["content"] for choice in data.get("choices", ()))
            number = 0
            async for line in response.content:
                if line.startswith(b"data: {"):
                    data = json.loads(line[6:])
                    text += "".join(choice["delta"].get("content") or "" for choice in data.get("choices", ()))
                number += 1
                if number == leave_after:
                    response.close()
                    break
    return text


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_interleaved_requests_never_mix(world: World, seed: int) -> None:
    async with echoing_engine(seed) as port:
        await world.route(make_route("public", make_target(port, own_host_id(), engine_model="m")))

        async def client(number: int) -> int:
            chance = random.Random(seed * 1000 + number)
            whole = 0
            for turn in range(TURNS):
                mark = f"<{number}.{turn}>"
                text = await one_turn(world, mark, chance)
                assert text.replace(mark, "") == "", f"client {number} got what is not its own"
                whole += len(text)
            return whole

        got = await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        assert sum(got) > CLIENTS * TURNS
        await until(lambda: world.master.statuses[-1].in_flight == {}, what="no request in flight")
    rows = await world.usage(CLIENTS * TURNS)
    assert sum(row.requests for row in rows) == CLIENTS * TURNS  # each once, however it ended
