"""Requests that wait long: a word for a quiet stream, an end for what takes too long."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import pytest

from gateway.service import Settings
from tests.fakes.engine import chunk, event
from tests.gateway.master import until
from tests.gateway.test_errors import refused
from tests.gateway.world import running_world

pytestmark = pytest.mark.asyncio


async def test_a_stream_that_waits_for_its_first_byte_hears_comments_then_the_answer(tmp_path: Path) -> None:
    async with running_world(tmp_path, Settings(access_log=False, keepalive_s=0.1)) as world:
        world.engine.gate = asyncio.Event()
        async with world.post(world.ask(stream=True)) as response:
            assert response.status == 200
            line = await asyncio.wait_for(response.content.readline(), 10)
            assert line == b": keep-alive\n"
            world.engine.gate.set()
            rest = await response.read()
        assert rest.rstrip().endswith(b"data: [DONE]")
        [row] = await world.usage()
        assert (row.status, row.completion_tokens) == (200, world.engine.completion_tokens)
        assert row.ttft_ms >= 100  # a comment is no token


async def test_a_stream_that_pauses_hears_comments_between_its_events(tmp_path: Path) -> None:
    async with running_world(tmp_path, Settings(access_log=False, keepalive_s=0.1)) as world:
        world.engine.words, world.engine.pause_s = ("a", "b"), 1.3
        async with world.post(world.ask(stream=True)) as response:
            body = await response.read()
        assert b"\n\n: keep-alive\n\ndata: " in body
        assert body.replace(b": keep-alive\n\n", b"").rstrip().endswith(b"data: [DONE]")


async def test_an_engine_that_fails_after_a_comment_is_told_within_the_stream(tmp_path: Path) -> None:
    async with running_world(tmp_path, Settings(access_log=False, keepalive_s=0.1)) as world:
        world.engine.gate = asyncio.Event()
        world.engine.fail = (400, {"error": {"message": "bad template", "type": "invalid_request_error"}})
        async with world.post(world.ask(stream=True)) as response:
            await response.content.readline()
            world.engine.gate.set()
            data = b""
            with contextlib.suppress(aiohttp.ClientPayloadError):  # it is cut: not to be taken for a whole answer
                while piece := await response.content.readany():
                    data += piece
        assert b'data: {"error":{"message":"bad template"' in data
        assert (await world.usage())[0].status == 400


async def test_an_answer_that_takes_too_long_ends_with_504_and_frees_the_engine(tmp_path: Path) -> None:
    async with running_world(tmp_path, Settings(access_log=False, total_s=0.1)) as world:
        world.engine.gate = asyncio.Event()
        status, error, _ = await refused(world.post())
        assert (status, error["code"]) == (504, "request_timeout")
        await until(lambda: world.engine.aborted, what="the cancel")
        assert (await world.usage())[0].status == 504


async def test_a_stream_that_never_ends_is_ended(tmp_path: Path) -> None:
    async with running_world(tmp_path, Settings(access_log=False, total_s=0.1)) as world:
        world.engine.endless = lambda number: event(chunk("x", "engine-model"))
        async with world.post(world.ask(stream=True)) as response:
            with pytest.raises(Exception, match=r"payload|closed|[Dd]isconnect"):
                await response.read()
        await until(lambda: world.engine.aborted, what="the cancel")
        assert (await world.usage())[0].status == 504
