"""Ranges over real TLS, from servers that behave in every way."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.join import pinned_context
from agent.store.ranges import BadAnswer, Endpoint, Ranges
from tests.agent.master import TestMaster
from wire import certs

pytestmark = pytest.mark.asyncio
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(a server's, its clients')."""
    folder = tmp_path_factory.mktemp("ranges")
    issuer, key = TestMaster(folder), certs.make_tls_key()
    pem = folder / "server.pem"
    pem.write_text(issuer.issue(key.public_pem, role="agent") + key.private_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context, pinned_context(issuer.ca_pem)


class Holder:
    """A server that gives each request the next of its answers. `requests`: their heads, by connection."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers = answers
        self.requests: list[list[str]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads: list[str] = []
        self.requests.append(heads)
        try:
            while self.answers:
                heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                await self.answers.pop(0)(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def served(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], *answers: Answer, read_s: float = 20.0
) -> AsyncIterator[tuple[Holder, Ranges]]:
    holder = Holder(list(answers))
    server = await asyncio.start_server(holder.serve, "127.0.0.1", 0, ssl=tls[0])
    port = server.sockets[0].getsockname()[1]
    ranges = Ranges(lambda: Endpoint("127.0.0.1", port, "localhost", tls[1]), 5.0, read_s)
    try:
        yield holder, ranges
    finally:
        ranges.close()
        server.close()


def sends(*parts: bytes, pause_s: float = 0.0, then_close: bool = False) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
        if then_close:
            writer.close()

    return answer


def whole(body: bytes, more_headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n%s\r\n" % (len(body), more_headers) + body


async def read(ranges: Ranges) -> bytes:
    async with ranges.get("/blob", {"Range": "bytes=0-1"}) as answer:
        into = bytearray(answer.length)
        assert sum([count async for count in answer.body(memoryview(into))]) == len(into)
        return bytes(into)


async def test_one_connection_serves_one_range_after_the_other(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    bodies = [os.urandom(5_000_000), b"", os.urandom(3), os.urandom(1 << 20)]
    async with served(tls, *(sends(whole(body)) for body in bodies)) as (holder, ranges):
        assert [await read(ranges) for _ in bodies] == bodies
    (heads,) = holder.requests
    assert len(heads) == 4
    assert heads[0].startswith("GET /blob HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "\r\nRange: bytes=0-1\r\n" in heads[0]


async def test_a_question_is_asked_on_the_same_connection(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with served(tls, sends(whole(b"one")), sends(whole(b"{}" * 9))) as (holder, ranges):
        assert await read(ranges) == b"one"
        assert await ranges.post("/have", b"", 18) == (206, b"{}" * 9)
    assert [len(heads) for heads in holder.requests] == [2]
    assert "\r\nContent-Length: 0\r\n" in holder.requests[0][1]


async def test_an_answer_to_a_question_has_a_longest_size(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with served(tls, sends(whole(b"{}" * 9))) as (_, ranges):
        with pytest.raises(BadAnswer, match="far too long"):
            await ranges.post("/have", b"", 17)


async def test_a_connection_that_was_closed_meanwhile_is_replaced(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with served(tls, sends(whole(b"one"), then_close=True), sends(whole(b"two"))) as (holder, ranges):
        assert await read(ranges) == b"one"
        assert await read(ranges) == b"two"
    assert [len(heads) for heads in holder.requests] == [1, 1]


async def test_what_closes_after_its_answer_is_not_asked_again(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with served(tls, sends(whole(b"one", b"Connection: close\r\n")), sends(whole(b"two"))) as (holder, ranges):
        assert await read(ranges) == b"one"
        assert await read(ranges) == b"two"
    assert len(holder.requests) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 206 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "no length"),
        (b"HTTP/1.1 206 OK\r\n\r\nabc", "no length"),
        (b"HTTP/1.1 206 OK\r\nContent-Length: -1\r\n\r\nabc", "not HTTP"),
        (b"HTTP/1.1 206 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "not HTTP"),
        (b"HTTP/1.1 206 OK\r\nContent-Length: 3\r\n\r\nabcdef", "more came"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 206 OK\r\n" + b"X-Many: 1\r\n" * 4000, "too large"),
    ],
    ids=["chunked", "no length", "negative", "two lengths", "longer", "another protocol", "endless head"],
)
async def test_what_is_no_range_is_not_taken(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], answer: bytes, said: str
) -> None:
    async with served(tls, sends(answer)) as (_, ranges):
        with pytest.raises(BadAnswer, match=said):
            await read(ranges)


async def test_bytes_after_the_body_end_the_connection(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """They would be taken for the next answer."""
    body = os.urandom(100_000)
    async with served(tls, sends(whole(body) + b"HTTP/1.1 200"), sends(whole(b"two"))) as (holder, ranges):
        assert await read(ranges) == body
        await asyncio.sleep(0.05)
        assert await read(ranges) == b"two"
    assert len(holder.requests) == 2


async def test_an_answer_that_breaks_off_is_an_error(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    cut = whole(os.urandom(5_000_000))[:-1]
    async with served(tls, sends(cut, then_close=True), sends(b"HTTP/1.1 20", then_close=True)) as (holder, ranges):
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await read(ranges)
    assert len(holder.requests) == 2, "asked again only what was kept and closed meanwhile"


async def test_one_that_stops_sending_is_given_up(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    stop = asyncio.Event()

    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(whole(os.urandom(5_000_000))[:3_000_000])
        await stop.wait()

    async with served(tls, half, read_s=0.4) as (_, ranges):
        with pytest.raises(TimeoutError, match=r"nothing came for 0\.4 s"):
            await read(ranges)
        stop.set()


async def test_one_that_never_answers_is_given_up(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    stop = asyncio.Event()

    async def silence(writer: asyncio.StreamWriter) -> None:
        await stop.wait()

    async with served(tls, silence, read_s=0.2) as (_, ranges):
        with pytest.raises(TimeoutError):
            await read(ranges)
        stop.set()


async def test_one_that_sends_little_at_a_time_is_borne(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Less than the kernel is to tell of, within the time that nothing may come."""
    body = os.urandom(3_000_000)
    text = whole(body)
    drops = [text[at : at + 30_000] for at in range(0, 900_000, 30_000)] + [text[900_000:]]
    async with served(tls, sends(*drops, pause_s=0.06), read_s=0.4) as (_, ranges):
        assert await read(ranges) == body


async def test_what_is_not_taken_is_not_read(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """A limit of bandwidth holds the sender back, too."""
    body = os.urandom(1 << 20) * 40
    sent = 0

    async def send(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(whole(body)[: -len(body)])
        for at in range(0, len(body), 1 << 20):
            writer.write(body[at : at + (1 << 20)])
            await writer.drain()
            sent = at

    async with served(tls, send) as (_, ranges), ranges.get("/", {}) as answer:
        into = bytearray(len(body))
        counts = answer.body(memoryview(into))
        came = await anext(counts)
        await asyncio.sleep(0.5)
        assert sent < 25 << 20, "what buffers of the kernel and of TLS hold"
        came += sum([count async for count in counts])
        assert came == len(body)
        assert into == body


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, 3_000_100), max_size=8), size=st.sampled_from([0, 1, 1900, 2100, 70_000, 3_000_000])
)
async def test_however_an_answer_is_cut_its_bytes_are_right(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], cuts: list[int], size: int
) -> None:
    body = os.urandom(size)
    text = whole(body, b"Content-Range: bytes 0-1/2\r\nX: y\r\n")
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[start:end] for start, end in pairwise(edges)]
    async with served(tls, sends(*parts, pause_s=0.001), sends(*parts)) as (holder, ranges):
        assert await read(ranges) == body
        assert await read(ranges) == body
    assert len(holder.requests) == 1


async def test_nobody_there_is_an_error(tls: tuple[ssl.SSLContext, ssl.SSLContext], folder: Path) -> None:
    async with served(tls) as (_, ranges):
        pass
    with pytest.raises(OSError):  # noqa: PT011 - whatever the kernel says
        await read(ranges)
