"""Clients that leave, engines that fail, instances that come and go under running requests."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from gateway.home import own_host_id
from tests.fakes.engine import FakeEngine, running_engine
from tests.gateway.master import make_route, make_target, until
from tests.gateway.test_errors import refused
from tests.gateway.test_relay import events, text_of
from tests.gateway.world import World

pytestmark = pytest.mark.asyncio


async def leave_after(world: World, body: dict[str, Any], marks: int) -> float:
    """Send a request by hand and cut the connection after `marks` chunks; the moment of the cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port.result())
    raw = json.dumps(body).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
        + raw
    )
    got = b""
    while got.count(b'"content":"w') < marks:
        got += await reader.read(65536)
    await until(lambda: world.engine.active == 1, what="the request at the engine")
    writer.transport.abort()
    return asyncio.get_running_loop().time()


async def test_a_client_that_leaves_a_stream_cancels_the_engine_and_pays_for_what_was_made(world: World) -> None:
    world.engine.words, world.engine.pause_s = ("w",) * 1000, 0.02
    cut = await leave_after(world, world.ask(stream=True), 3)
    await until(lambda: world.engine.aborted, what="the cancel")
    assert world.engine.aborted[0] - cut < 0.2
    [row] = await world.usage()
    assert row.status == 499
    assert 3 <= row.completion_tokens < 100
    assert row.prompt_tokens > 0
    await until(lambda: world.master.statuses[-1].in_flight == {}, what="no request in flight")


async def test_a_client_that_leaves_before_the_answer_cancels_the_engine(world: World) -> None:
    world.engine.gate = asyncio.Event()
    cut = await leave_after(world, world.ask(), 0)
    await until(lambda: world.engine.aborted, what="the cancel")
    assert world.engine.aborted[0] - cut < 0.2
    [row] = await world.usage()
    assert (row.status, row.completion_tokens) == (499, 0)
    assert len(world.engine.requests) == 1


async def test_a_client_that_leaves_ends_the_tries(world: World) -> None:
    world.engine.fail = (503, {"error": {"message": "Loading model"}})
    reader = asyncio.create_task(leave_quietly(world))
    await reader
    [row] = await world.usage()
    assert row.status == 499
    tries = len(world.engine.requests)
    async with world.client.get(world.base + "/healthz") as response:
        assert response.status == 200
    world.engine.fail = None
    async with world.post() as response:
        assert response.status == 200
    assert len(world.engine.requests) == tries + 1


async def leave_quietly(world: World) -> None:
    call = asyncio.create_task(world.post().__aenter__())
    await until(lambda: len(world.engine.requests) >= 2, what="a second try")
    call.cancel()
    await asyncio.wait({call})


async def test_a_stream_that_breaks_ends_with_an_error_and_not_as_if_complete(world: World) -> None:
    world.engine.cut_after = 3
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port.result())
    raw = json.dumps(world.ask(stream=True)).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.secret}\r\n"
        f"Content-Length: {len(raw)}\r\n\r\n".encode()
        + raw
    )
    answer = await reader.read()
    assert b'"code":"engine_failed"' in answer
    assert b"[DONE]" not in answer
    assert not answer.endswith(b"0\r\n\r\n")
    writer.close()
    [row] = await world.usage()
    assert row.status == 502
    assert row.completion_tokens == 2
    assert len(world.engine.requests) == 1


async def test_a_stream_that_just_stops_without_done_is_an_error_too(world: World) -> None:
    world.engine.without_done = True
    with pytest.raises(Exception, match=r"payload|closed|[Dd]isconnect"):
        async with world.post(world.ask(stream=True)) as response:
            await response.read()
    assert (await world.usage())[0].status == 502


async def test_an_answer_that_breaks_off_is_502_and_not_repeated(world: World) -> None:
    world.engine.delay_s, world.engine.cut_after = 0.4, 0
    status, error, _ = await refused(world.post())
    assert (status, error["code"]) == (502, "engine_failed")
    assert len(world.engine.requests) == 1


async def test_another_instance_is_tried_before_the_first_byte(world: World) -> None:
    async with running_engine(FakeEngine()) as second:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = make_target(closed.getsockname()[1], own_host_id())
            await world.route(make_route("public", dead, make_target(second.port, own_host_id())))
            for number in range(20):
                async with world.post(world.ask(messages=[{"role": "user", "content": str(number)}])) as response:
                    assert response.status == 200
        assert len(second.requests) == 20


async def test_an_instance_that_loads_is_left_out(world: World) -> None:
    world.engine.fail = (503, {"error": {"message": "Loading model"}})
    async with running_engine(FakeEngine()) as second:
        targets = (make_target(world.engine.port, own_host_id()), make_target(second.port, own_host_id()))
        await world.route(make_route("public", *targets))
        for number in range(20):
            async with world.post(world.ask(messages=[{"role": "user", "content": str(number)}])) as response:
                assert response.status == 200
    assert len(world.engine.requests) <= 2


async def test_a_lone_engine_that_restarts_loses_no_request(world: World) -> None:
    engine = FakeEngine(fail=(503, {"error": {"message": "Loading model"}}), fail_times=3)
    async with AsyncExitStack() as stack:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        await world.route(make_route("public", make_target(port, own_host_id())))
        calls = [asyncio.create_task(world.post().__aenter__()) for _ in range(5)]
        await until(lambda: "upstream_errors" in world.gateway.service.metrics_text().decode())  # type: ignore[union-attr]
        await world.route(make_route("public", reason="restarting"))
        await stack.enter_async_context(running_engine(engine, port=port))
        await world.route(make_route("public", make_target(port, own_host_id())))
        for response in await asyncio.gather(*calls):
            assert response.status == 200
            response.release()


async def test_a_removed_instance_gets_no_new_request_while_its_running_one_ends(world: World) -> None:
    world.engine.words, world.engine.gate = ("w",) * 5, asyncio.Event()
    old = f"i-{world.engine.port}"
    async with running_engine(FakeEngine()) as second:
        running = asyncio.create_task(world.post(world.ask(stream=True)).__aenter__())
        await until(lambda: world.engine.active == 1, what="the running request")
        await until(lambda: world.master.statuses[-1].in_flight == {old: 1}, what="in flight at the master")
        assert old in world.master.statuses[-1].routable
        await world.route(make_route("public", make_target(second.port, own_host_id())))
        await until(lambda: old not in world.master.statuses[-1].routable, within_s=0.5, what="a status without it")
        assert world.master.statuses[-1].in_flight == {old: 1}
        for _ in range(10):
            async with world.post() as response:
                assert response.status == 200
        assert len(world.engine.requests) == 1
        assert len(second.requests) == 10
        world.engine.gate.set()
        response = await running
        assert text_of(await events(response)) == "wwwww"
        await until(lambda: world.master.statuses[-1].in_flight == {}, what="nothing in flight")


async def test_events_broken_anywhere_and_crlf_arrive_whole(world: World) -> None:
    world.engine.words = ("ü", "✓✓", '"quoted"', "\u2028", "\\n", "🦙")
    for end in ("\n\n", "\r\n\r\n"):
        for size in (1, 7, 64):
            world.engine.line_end, world.engine.piece_bytes = end, size
            async with world.post(world.ask(stream=True)) as response:
                assert text_of(await events(response)) == "".join(world.engine.words)
    assert sum(row.completion_tokens for row in await world.usage(6)) == 36


async def test_a_huge_prompt_and_unicode_arrive_as_they_were(world: World) -> None:
    text = "Größe ✓ 🦙 \u0000 " * 400_000
    async with world.post(world.ask(messages=[{"role": "user", "content": text}])) as response:
        assert response.status == 200
    assert world.engine.requests[0]["messages"][0]["content"] == text


async def test_a_slow_client_slows_the_engine_down_instead_of_filling_memory(world: World) -> None:
    piece = b'data: {"model":"engine-model","choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'
    world.engine.endless = lambda number: piece
    async with world.post(world.ask(stream=True)) as response:
        await response.content.readany()
        seen = -1
        deadline = time.monotonic() + 10
        while seen != world.engine.sent_bytes:  # nothing more is taken: all buffers on the way are full
            assert time.monotonic() < deadline
            seen = world.engine.sent_bytes
            await asyncio.sleep(0.5)
        assert seen < 64 * 1024 * 1024
        response.close()
    await until(lambda: world.engine.aborted, what="the cancel")


async def test_completions_and_embeddings_are_relayed_and_metered(world: World) -> None:
    async with world.post({"model": "public", "prompt": "x"}, "/v1/completions") as response:
        assert (await response.json())["choices"][0]["text"] == "Hello wörld ✓"
    async with world.post({"model": "public", "input": ["a", "b"]}, "/v1/embeddings") as response:
        answer = await response.json()
    assert len(answer["data"]) == 2
    assert answer["model"] == "public"
    rows = await world.usage(2)
    assert sum(row.prompt_tokens for row in rows) == 22


async def test_a_stream_goes_on_to_its_end_when_its_instance_moves(world: World) -> None:
    world.engine.pause_s = 0.2
    async with running_engine(FakeEngine()) as elsewhere, world.post(world.ask(stream=True)) as response:
        first = await response.content.readany()
        target = world.master.snapshot.routes[0].targets[0]
        await world.route(make_route("public", msgspec.structs.replace(target, port=elsewhere.port)))
        async with world.post() as other:
            assert other.status == 200
        assert elsewhere.requests
        async with asyncio.timeout(10):
            rest = await response.content.read()
    assert b"[DONE]" in rest
    assert b"[DONE]" not in first
