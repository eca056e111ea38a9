"""The HTTP client by itself, against servers that answer by the letter, late, in pieces, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from gateway.errors import EngineUnreachable, GatewayError
from gateway.http.client import Answer, AnswerBroken
from gateway.upstream import Line, Peer, Timeouts
from tests.gateway.master import until
from tests.ports import free_port

pytestmark = pytest.mark.asyncio

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Collected:
    """A sink that keeps everything."""

    data: bytes = b""
    ends: list[AnswerBroken | None] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, data: bytes) -> None:
        self.data += data

    def end(self, error: AnswerBroken | None) -> None:
        self.ends.append(error)
        self.ended.set()


@dataclass
class Engine:
    port: int
    connections: int = 0
    closed: int = 0


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


def says(*pieces: bytes, then_close: bool = False) -> Script:
    """Answers every request with these pieces."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if then_close:
                return

    return script


@asynccontextmanager
async def talking_to(script: Script, **timeouts: float) -> AsyncIterator[tuple[Line, Engine]]:
    engine = Engine(free_port())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await script(reader, writer)
        engine.closed += 1
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", engine.port)
    line = Line(Peer("i-1", (("127.0.0.1", engine.port),), b"engine"), Timeouts(**timeouts))
    try:
        yield line, engine
    finally:
        line.cut()
        server.close()
        await asyncio.sleep(0)


async def ask(line: Line, body: bytes = b"{}") -> Answer:
    async with asyncio.timeout(10):
        return await line.ask("/v1/x", b"application/json", body, b"r-1")


async def failure(line: Line) -> tuple[int, str]:
    with pytest.raises(GatewayError) as caught:
        await ask(line)
    return caught.value.status, caught.value.code


async def test_a_whole_answer_keeps_its_connection_for_the_next() -> None:
    async with talking_to(says(WHOLE)) as (line, engine):
        for _ in range(3):
            answer = await ask(line)
            assert (answer.status, answer.body(), answer.content_type) == (200, b"{}", b"application/json")
        assert engine.connections == 1
        await asyncio.gather(*(ask(line) for _ in range(5)))
        assert engine.connections == 5


@pytest.mark.parametrize("size", [1, 3, 50])
async def test_an_answer_may_come_in_pieces(size: int) -> None:
    async with talking_to(says(*[WHOLE[i : i + size] for i in range(0, len(WHOLE), size)])) as (line, _):
        assert (await ask(line)).body() == b"{}"


async def test_interim_answers_are_passed_over() -> None:
    async with talking_to(says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", WHOLE)) as (
        line,
        _,
    ):
        answer = await ask(line)
        assert (answer.status, answer.body(), b"link" in answer.headers) == (200, b"{}", False)


async def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    async with talking_to(says(b"HTTP/1.1 200 OK\r\n\r\nab", b"cd", then_close=True)) as (line, engine):
        assert (await ask(line)).body() == b"abcd"
        assert (await ask(line)).body() == b"abcd"
        assert engine.connections == 2


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Le",),
        (b"garbage\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000,),
    ],
    ids=["short body", "no last chunk", "half a head", "garbage", "two lengths", "bad chunk", "endless head"],
)
async def test_an_answer_that_is_not_whole_is_an_error_and_its_connection_is_not_used_again(
    pieces: tuple[bytes, ...],
) -> None:
    async with talking_to(says(*pieces, then_close=True)) as (line, engine):
        assert await failure(line) == (502, "engine_failed")
        await failure(line)
        assert engine.connections == 2


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", b"HTTP/1.1 2", b"garbage"])
async def test_bytes_beyond_an_answer_end_the_connection_and_reach_nobody(more: bytes) -> None:
    async with talking_to(says(WHOLE + more)) as (line, engine):
        bodies = set()
        for _ in range(4):
            with contextlib.suppress(GatewayError, EngineUnreachable):
                bodies.add((await ask(line)).body())
            await asyncio.sleep(0.01)
        assert bodies == {b"{}"}
        assert engine.connections >= 2


async def test_a_kept_connection_that_the_server_has_closed_can_be_tried_again() -> None:
    async def one_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(WHOLE)
        await read_request(reader)  # takes the second request, and hangs up

    async with talking_to(one_each) as (line, _):
        await ask(line)
        with pytest.raises(EngineUnreachable):
            await ask(line)
        assert (await ask(line)).body() == b"{}"


async def test_nobody_there_is_unreachable() -> None:
    line = Line(Peer("i-1", (("127.0.0.1", free_port()),), b"engine"), Timeouts())
    with pytest.raises(EngineUnreachable):
        await ask(line)


async def test_an_engine_that_hangs_is_cut_off() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async with talking_to(hang, first_byte_s=0.1) as (line, engine):
        asking = asyncio.create_task(failure(line))
        await until(lambda: engine.connections, what="the connection")
        await asyncio.sleep(0.15)
        line.tick(asyncio.get_running_loop().time())
        assert await asking == (504, "engine_timeout")
        await until(lambda: engine.closed, what="the cut")


async def test_a_request_that_is_cancelled_cuts_the_engine_off_at_once() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async with talking_to(hang) as (line, engine):
        asking = asyncio.create_task(ask(line))
        await until(lambda: engine.connections, what="the connection")
        asking.cancel()
        await asyncio.wait({asking})
        await until(lambda: engine.closed, what="the cut")


async def test_a_stream_comes_as_it_is_sent_and_frees_its_connection() -> None:
    async with talking_to(says(STREAM, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")) as (line, engine):
        for _ in range(2):
            answer = await ask(line)
            assert answer.is_stream
            sink = Collected()
            answer.pipe(sink)
            await asyncio.wait_for(sink.ended.wait(), 5)
            assert (sink.data, sink.ends) == (b"abcde", [None])
        assert engine.connections == 1


async def test_a_stream_that_breaks_says_so_once() -> None:
    async with talking_to(says(STREAM, b"3\r\nabc\r\n", then_close=True)) as (line, _):
        answer = await ask(line)
        await asyncio.sleep(0.05)  # it has broken before somebody takes it
        sink = Collected()
        answer.pipe(sink)
        await asyncio.wait_for(sink.ended.wait(), 5)
        assert sink.data == b"abc"
        assert [type(end) for end in sink.ends] == [AnswerBroken]


async def test_a_stream_that_nobody_takes_is_not_read_for_ever() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(STREAM)
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536

    async with talking_to(endless) as (line, engine):
        answer = await ask(line)
        await asyncio.sleep(0.3)
        assert answer.size < 2_000_000
        held = sent
        await asyncio.sleep(0.2)
        assert sent == held  # it has stopped: the rest is in the kernel's buffers
        answer.close()
        await until(lambda: engine.closed, what="the cut")


async def test_kept_connections_are_closed_after_a_while() -> None:
    async with talking_to(says(WHOLE)) as (line, engine):
        await ask(line)
        line.tick(asyncio.get_running_loop().time() + 60)
        await until(lambda: engine.closed, what="the end")
        await ask(line)
        assert engine.connections == 2


async def test_a_line_that_is_closed_lets_its_answers_end() -> None:
    go = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await go.wait()
        writer.write(WHOLE)
        await reader.read()

    async with talking_to(wait) as (line, engine):
        asking = asyncio.create_task(ask(line))
        await until(lambda: engine.connections, what="the connection")
        line.close()
        assert line.in_use
        go.set()
        assert (await asking).body() == b"{}"
        assert not line.in_use
        await until(lambda: engine.closed, what="the end")
