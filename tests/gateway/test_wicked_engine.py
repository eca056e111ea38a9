"""Engines that send what no engine should: the client gets a clear error or a clean relay, memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from gateway.home import own_host_id
from tests.gateway.master import make_route, make_target, until
from tests.gateway.world import World
from tests.ports import free_port

pytestmark = pytest.mark.asyncio

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
TEXT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def engine_that_says(*pieces: bytes, hang: bool = False) -> AsyncIterator[int]:
    """Port of an engine that answers each request with these bytes, and closes (or hangs)."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if hang:
                await reader.read()
        writer.close()

    port = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield port
    finally:
        server.close()


async def streamed(world: World, port: int) -> tuple[int, bytes, bool]:
    """(status, body, whether it ended as a whole answer does)"""
    await world.route(make_route("public", make_target(port, own_host_id(), engine_model="m")))
    body, whole = b"", True
    async with world.post(world.ask(stream=True)) as response:
        try:
            while data := await response.content.readany():
                body += data
        except aiohttp.ClientPayloadError:
            whole = False
    return response.status, body, whole


async def answered(world: World, port: int) -> tuple[int, bytes]:
    await world.route(make_route("public", make_target(port, own_host_id(), engine_model="m")))
    async with world.post() as response:
        return response.status, await response.read()


@pytest.mark.parametrize(
    "answer",
    [b"garbage", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"\x00" * 1000],
    ids=["garbage", "half a head", "half a body", "zeros"],
)
async def test_what_is_no_answer_is_a_502(world: World, answer: bytes) -> None:
    async with engine_that_says(answer) as port:
        status, body = await answered(world, port)
        assert status == 502
        assert b'"code":"engine_failed"' in body
        assert (await world.usage())[0].status == 502


@pytest.mark.parametrize("usage", [b'"many"', b"null", b'{"prompt_tokens":"x","completion_tokens":-5}', b"[1]", b"{}"])
async def test_wrong_usage_is_no_usage(world: World, usage: bytes) -> None:
    text = b'{"model":"m","choices":[],"usage":' + usage + b"}"
    async with engine_that_says(JSON_HEAD % len(text) + text) as port:
        assert (await answered(world, port))[0] == 200
        [row] = await world.usage()
        assert (row.completion_tokens, row.status) == (0, 200)
        assert row.prompt_tokens >= 0


async def test_garbage_within_a_stream_passes_and_counts_nothing(world: World) -> None:
    odd = b"data: {not json}\n\n: comment\n\nevent: x\ndata: 1\n\n\n\nid: 5\n\n"
    async with engine_that_says(STREAM_HEAD, odd, TEXT, odd, DONE) as port:
        status, body, whole = await streamed(world, port)
        assert (status, whole) == (200, True)
        assert b'"content":"hi"' in body
        assert (await world.usage())[0].completion_tokens == 1


async def test_half_an_event_at_the_end_is_not_a_whole_answer(world: World) -> None:
    async with engine_that_says(STREAM_HEAD, TEXT, TEXT[:30]) as port:
        status, body, whole = await streamed(world, port)
        assert (status, whole) == (200, False)
        assert b"engine_failed" in body
        assert (await world.usage())[0].status == 502


async def test_an_event_of_ten_megabytes_ends_the_stream_with_an_error(world: World) -> None:
    async with engine_that_says(STREAM_HEAD, TEXT, b"data: ", *[b"x" * 1_000_000] * 10, hang=True) as port:
        _, body, whole = await streamed(world, port)
        assert not whole
        assert b"engine_failed" in body
        assert len(body) < 10_000


async def test_an_event_of_some_megabytes_passes_whole(world: World) -> None:
    big = TEXT.replace(b"hi", b"y" * 4_000_000)
    async with engine_that_says(STREAM_HEAD, big, DONE) as port:
        _, body, whole = await streamed(world, port)
        assert whole
        assert body.count(b"y") == 4_000_000


async def test_a_stream_where_none_was_asked_for_passes(world: World) -> None:
    async with engine_that_says(STREAM_HEAD, TEXT, DONE) as port:
        status, body = await answered(world, port)
        assert status == 200
        assert body.endswith(DONE)


async def test_a_redirect_is_not_followed(world: World) -> None:
    async with engine_that_says(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    ) as port:
        assert (await answered(world, port))[0] == 502


async def test_a_client_that_leaves_a_hanging_engine_frees_everything(world: World) -> None:
    async with engine_that_says(STREAM_HEAD, TEXT, hang=True) as port:
        await world.route(make_route("public", make_target(port, own_host_id(), engine_model="m")))
        async with world.post(world.ask(stream=True)) as response:
            await response.content.readany()
            response.close()
        [row] = await world.usage()
        assert row.status == 499
        await until(lambda: world.gateway.service is not None and not world.gateway.service.active, what="the end")
