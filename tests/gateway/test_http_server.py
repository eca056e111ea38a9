"""The HTTP server by itself: what is no HTTP, what is too much, too slow or too early, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from gateway.http.request import BadBody, BodyTooLarge, ClientGone, Request
from gateway.http.server import Bounds, Server
from tests.gateway.master import until

pytestmark = pytest.mark.asyncio

BAD_HEAD = {
    "two different lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "two equal lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "a list of lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd",
    "length and chunks": b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "chunked not last": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a negative length": b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "a signed length": b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\na",
    "bare line feeds": b"POST / HTTP/1.1\nContent-Length: 1\n\na",
    "a space before the colon": b"POST / HTTP/1.1\r\nHost : a\r\n\r\n",
    "a folded line": b"POST / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    "NUL in a value": b"POST / HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "CR in a value": b"POST / HTTP/1.1\r\nX: a\rb\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a websocket": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a tunnel": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown version": b"GET / HTTP/1.7\r\n\r\n",
}


@dataclass
class Seen:
    """What the handler saw."""

    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    gone: int = 0


Handle = Callable[[Request, Seen], Awaitable[None]]


async def echo(request: Request, seen: Seen) -> None:
    """Answers with the body."""
    seen.paths.append(request.path)
    try:
        body = await request.body(1_000_000)
    except (BodyTooLarge, BadBody, ClientGone) as error:
        seen.errors.append(type(error).__name__)
        request.answer(413 if isinstance(error, BodyTooLarge) else 400, [], type(error).__name__.encode())
        return
    seen.bodies.append(body)
    request.answer(200, [(b"x-query", request.query.encode())], body)


@asynccontextmanager
async def running(handle: Handle = echo, bounds: Bounds | None = None) -> AsyncIterator[tuple[Server, int, Seen]]:
    """(server, port, what its handler saw)"""
    seen = Seen()

    async def handler(request: Request) -> None:
        await handle(request, seen)

    server = Server(handler, lambda status, why: ([(b"x-refused", b"yes")], why.encode()), bounds)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    await server.start(listener)
    try:
        yield server, listener.getsockname()[1], seen
    finally:
        await server.close(0.1)


async def talk(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Send pieces, then read until the server closes or nothing more comes for a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause_s)
    answer = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(10):
            while data := await asyncio.wait_for(reader.read(1 << 20), 0.4):
                answer += data
    writer.close()
    return answer


@pytest.mark.parametrize("name", BAD_HEAD)
async def test_what_is_no_http_gets_an_error_and_the_connection_ends(name: str) -> None:
    async with running() as (_, port, seen):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(BAD_HEAD[name])
        answer = await asyncio.wait_for(reader.read(), 10)  # to its end
        writer.close()
        assert answer.split()[1] in (b"400", b"505")
        assert answer.count(b"content-length: ") == 1
        assert not seen.bodies


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
async def test_a_request_may_come_in_pieces_of_any_size(size: int) -> None:
    body = b"x" * 3000
    raw = b"POST /p?q=1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with running() as (_, port, seen):
        answer = await talk(port, *[raw[i : i + size] for i in range(0, len(raw), size)])
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n" + body)
        assert b"x-query: q=1\r\n" in answer
        assert seen.paths == ["/p"]


async def test_chunked_bodies_are_put_together_and_trailers_left_out() -> None:
    raw = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nx-query: no\r\n\r\n"
    async with running() as (_, port, seen):
        assert (await talk(port, raw)).endswith(b"abcde")
        assert seen.bodies == [b"abcde"]


async def test_pipelined_requests_are_answered_in_order() -> None:
    one = b"POST /%d HTTP/1.1\r\nContent-Length: 1\r\n\r\n%d"
    async with running() as (_, port, seen):
        answer = await talk(port, b"".join(one % (i, i % 10) for i in range(100)))
        assert answer.count(b"HTTP/1.1 200") == 100
        assert seen.paths == [f"/{i}" for i in range(100)]
        assert b"".join(seen.bodies) == b"0123456789" * 10


async def test_a_bad_chunk_is_told_to_who_waits_for_the_body() -> None:
    async with running() as (_, port, seen):
        answer = await talk(
            port, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"zz\r\n", pause_s=0.05
        )
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"content-length: ") == 1
        assert seen.errors == ["BadBody"]


async def test_framing_without_a_body_is_not_read_for_ever() -> None:
    extension = b"1;" + b"x" * 30_000 + b"\r\na\r\n"
    async with running() as (_, port, seen):
        answer = await talk(port, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", *[extension] * 10)
        assert answer.startswith(b"HTTP/1.1 400")
        assert not seen.bodies


@pytest.mark.parametrize("line", [b"X: " + b"a" * 100_000, b"GET /" + b"a" * 100_000], ids=["header", "target"])
async def test_a_head_without_an_end_is_refused(line: bytes) -> None:
    async with running() as (_, port, seen):
        start = b"" if line.startswith(b"GET") else b"GET / HTTP/1.1\r\n"
        answer = await talk(port, start + line)
        assert answer.startswith(b"HTTP/1.1 431")
        assert not seen.paths


async def test_many_small_headers_count_too() -> None:
    async with running() as (_, port, _):
        answer = await talk(port, b"GET / HTTP/1.1\r\n", *[b"X-%d: 1\r\n" % i * 500 for i in range(20)])
        assert answer.startswith(b"HTTP/1.1 431")


async def test_a_slow_head_is_cut_off() -> None:
    async with running(bounds=Bounds(head_s=0.2)) as (_, port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_slow_body_is_cut_off() -> None:
    async with running(bounds=Bounds(body_s=0.2)) as (_, port, seen):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 10000\r\n\r\nab")
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 408")
        assert not seen.bodies
        writer.close()


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with running(bounds=Bounds(idle_s=0.2)) as (_, port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_body_is_not_taken_before_somebody_asks_for_it() -> None:
    ask = asyncio.Event()

    async def wait(request: Request, seen: Seen) -> None:
        await ask.wait()
        await echo(request, seen)

    body = b"x" * 900_000
    async with running(wait) as (server, port, seen):
        talking = asyncio.create_task(
            talk(port, b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body), body, pause_s=0.1)
        )
        await until(lambda: server.connections, what="the connection")
        await asyncio.sleep(0.2)
        (connection,) = server.connections
        assert connection.request is not None
        assert connection.request._size < 600_000  # about one read more than what is taken unasked
        ask.set()
        assert (await talking).endswith(body)
        assert seen.bodies == [body]


async def test_an_early_answer_reaches_a_client_that_is_still_sending() -> None:
    async def refuse(request: Request, seen: Seen) -> None:
        request.answer(401, [], b"no")

    async with running(refuse) as (_, port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 50000000\r\n\r\n")
        try:
            for _ in range(50):
                writer.write(b"x" * 100_000)
                await writer.drain()
        except ConnectionError:
            pytest.fail("the connection was reset before the answer was read")
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"connection: close" in answer
        writer.close()


async def test_a_small_body_that_was_answered_early_does_not_end_the_connection() -> None:
    async def refuse(request: Request, seen: Seen) -> None:
        seen.paths.append(request.path)
        request.answer(401, [], b"no")

    async with running(refuse) as (_, port, seen):
        answer = await talk(
            port, b"POST /1 HTTP/1.1\r\nContent-Length: 3\r\n\r\n", b"abc", b"GET /2 HTTP/1.1\r\n\r\n", pause_s=0.05
        )
        assert answer.count(b"HTTP/1.1 401") == 2
        assert seen.paths == ["/1", "/2"]


async def test_a_client_that_waits_for_100_continue_gets_it_once_the_body_is_wanted() -> None:
    async with running() as (_, port, seen):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200")
        writer.close()
        assert seen.bodies == [b"abc"]


async def test_a_client_that_leaves_is_told_to_the_handler_at_once() -> None:
    async def wait(request: Request, seen: Seen) -> None:
        left = asyncio.Event()
        request.on_gone = left.set
        await left.wait()
        seen.gone += 1

    async with running(wait) as (server, port, seen):
        for leave in ("close", "abort"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: any(item.request for item in server.connections), what="the request")
            getattr(writer.transport, leave)()
            await until(lambda: not server.connections, what="the end")
        assert seen.gone == 2


async def test_a_stream_in_http_1_0_ends_with_the_connection() -> None:
    async def stream(request: Request, seen: Seen) -> None:
        request.start(200, [])
        request.write(b"one")
        request.write(b"two")
        request.finish()

    async with running(stream) as (_, port, _):
        old = await talk(port, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert old.endswith(b"connection: close\r\n\r\nonetwo")
        new = await talk(port, b"GET / HTTP/1.1\r\n\r\n")
        assert new.endswith(b"transfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


async def test_a_handler_that_fails_or_forgets_to_answer_does_not_leave_the_client_waiting() -> None:
    async def broken(request: Request, seen: Seen) -> None:
        if request.path == "/half":
            request.start(200, [])
        if request.path != "/forget":
            raise RuntimeError("bug")

    async with running(broken) as (_, port, _):
        assert (await talk(port, b"GET /raise HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 500")
        half = await talk(port, b"GET /half HTTP/1.1\r\n\r\n")
        assert not half.endswith(b"0\r\n\r\n")
        assert await talk(port, b"GET /forget HTTP/1.1\r\n\r\n") == b""


async def test_closing_lets_requests_in_flight_end_and_takes_no_new_ones() -> None:
    go = asyncio.Event()

    async def wait(request: Request, seen: Seen) -> None:
        await go.wait()
        request.answer(200, [], b"done")

    async with running(wait) as (server, port, _):
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: any(item.request for item in server.connections), what="the request")
        closing = asyncio.create_task(server.close(10))
        assert await asyncio.wait_for(idle_reader.read(), 5) == b""
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)
        go.set()
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.endswith(b"connection: close\r\n\r\ndone")
        await closing
        idle_writer.close()
        writer.close()


async def test_too_many_connections_are_refused_and_those_there_go_on() -> None:
    async with running(bounds=Bounds(connections=2)) as (_, port, _):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert (await talk(port, b"")).startswith(b"HTTP/1.1 503")
        reader, writer = held[0]
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\na")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200")
        for _, writer in held:
            writer.close()


async def test_thousands_of_idle_connections_disturb_nobody() -> None:
    async with running() as (server, port, _):
        writers = []
        for _ in range(2000):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
        await until(lambda: len(server.connections) == 2000, what="all connections")
        assert (await talk(port, b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\na")).endswith(b"a")
        for writer in writers:
            writer.transport.abort()
