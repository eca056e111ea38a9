"""The relay over real sockets and TLS: who gets through, and that every byte does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from agent.home import AgentHome
from agent.relay import Relay
from tests.agent.master import SERVER_ID, TestMaster
from tests.ports import free_port
from wire import certs

pytestmark = pytest.mark.asyncio
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Engine = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MIB = 2**20


class Door:
    """A relay before one engine, `inst-1`, whose behaviour a test sets."""

    def __init__(self, home: AgentHome) -> None:
        identity = home.identity()
        assert identity is not None
        self.engine: Engine = echo
        self.connections = 0
        self.engine_port = 0
        self.ports: dict[str, int] = {}
        self.revoked: set[str] = set()
        self.relay = Relay(home, identity, self.ports.get, lambda: self.revoked)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError):
            await self.engine(reader, writer)
        writer.close()

    async def connect(self, context: ssl.SSLContext, name: str | None) -> Streams:
        return await asyncio.open_connection(
            "127.0.0.1", self.relay.port, ssl=context, server_hostname=name or "", limit=MIB
        )


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()


@pytest_asyncio.fixture
async def door(home: AgentHome) -> AsyncIterator[Door]:
    made = Door(home)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.ports["inst-1"] = server.sockets[0].getsockname()[1]
    await made.relay.start("127.0.0.1", free_port())  # 8444 is contended by test processes
    yield made
    await made.relay.close()
    server.close()


NAME = certs.relay_name("inst-1", SERVER_ID)


async def test_a_gateway_gets_bytes_both_ways(master: TestMaster, door: Door) -> None:
    reader, writer = await door.connect(master.client_context("gateway"), NAME)
    data = os.urandom(4 * MIB)
    sending = asyncio.create_task(send(writer, data))
    assert await reader.readexactly(len(data)) == data
    await sending
    writer.close()


async def test_a_revoked_certificate_is_cut_at_once_and_refused_from_then_on(master: TestMaster, door: Door) -> None:
    context = master.client_context("gateway")
    reader, writer = await door.connect(context, NAME)
    await send(writer, b"hello")
    assert await reader.readexactly(5) == b"hello"
    door.revoked.add(certs.serial((master.folder / "gateway.pem").read_text()))
    door.relay.cut_revoked()
    async with asyncio.timeout(5):
        assert await received(reader) == b""
    again, writer = await door.connect(context, NAME)
    await send(writer, b"hello")
    assert await received(again) == b""
    assert door.connections == 1
    other, writer = await door.connect(master.client_context("gateway"), NAME)
    await send(writer, b"hello")
    assert await other.readexactly(5) == b"hello", "a certificate issued anew is another one"
    writer.close()


async def received(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end; a connection that is cut has come to its end."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        return await reader.read()
    return b""


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_all_that_an_engine_wrote_before_it_closed_its_side_arrives_at_a_slow_reader(
    master: TestMaster, door: Door
) -> None:
    data = os.urandom(8 * MIB)

    async def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        await send(writer, data)

    door.engine = answer_and_close
    reader, writer = await door.connect(master.client_context("gateway"), NAME)
    await send(writer, b"GET")
    received = b""
    while piece := await reader.read(300_000):
        received += piece
        await asyncio.sleep(0)
    assert received == data
    writer.close()


async def test_a_gateway_that_goes_away_stops_the_engines_work(master: TestMaster, door: Door) -> None:
    gone = asyncio.Event()

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"token")
        await reader.read()
        gone.set()

    door.engine = work
    reader, writer = await door.connect(master.client_context("gateway"), NAME)
    assert await reader.readexactly(5) == b"token"
    writer.transport.abort()
    async with asyncio.timeout(5):
        await gone.wait()


async def test_a_slow_gateway_slows_the_engine_instead_of_filling_memory(master: TestMaster, door: Door) -> None:
    written = 0
    stalled = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        while written < 64 * MIB:
            writer.write(bytes(MIB // 4))
            try:
                async with asyncio.timeout(1):
                    await writer.drain()
            except TimeoutError:
                stalled.set()
                return
            written += MIB // 4

    door.engine = flood
    _, writer = await door.connect(master.client_context("gateway"), NAME)
    async with asyncio.timeout(10):
        await stalled.wait()
    assert written < 32 * MIB
    writer.transport.abort()


async def knock(door: Door, context: ssl.SSLContext, name: str | None) -> None:
    """With TLS 1.3 a client learns that it was refused when it reads."""
    reader, writer = await door.connect(context, name)
    await send(writer, b"let me in")
    await reader.readexactly(1)


def without_certificate(master: TestMaster) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=master.ca_pem)


def of_an_agent(master: TestMaster) -> ssl.SSLContext:
    return master.client_context("agent")


def of_a_master(master: TestMaster) -> ssl.SSLContext:
    return master.client_context("master")


def of_another_ca(master: TestMaster) -> ssl.SSLContext:
    stranger = TestMaster(master.folder)
    context = stranger.client_context("gateway")
    context.load_verify_locations(cadata=master.ca_pem)
    return context


@pytest.mark.parametrize("make", [without_certificate, of_an_agent, of_a_master, of_another_ca])
async def test_only_a_gateway_of_this_ca_gets_to_an_engine(
    master: TestMaster, door: Door, make: Callable[[TestMaster], ssl.SSLContext]
) -> None:
    with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
        await knock(door, make(master), NAME)
    assert door.connections == 0


@pytest.mark.parametrize(
    "name",
    [
        None,
        "localhost",
        certs.relay_name("inst-2", SERVER_ID),
        certs.relay_name("inst-1", "srv-2"),
        f"a.{NAME}",
        f".{SERVER_ID}.relay.stokehold.internal",
    ],
)
async def test_a_name_that_is_no_running_instance_here_leads_nowhere(
    master: TestMaster, door: Door, name: str | None
) -> None:
    context = master.client_context("gateway")
    context.check_hostname = False
    with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, ValueError)):
        await knock(door, context, name)
    assert door.connections == 0


async def test_an_engine_that_does_not_listen_ends_the_connection(master: TestMaster, door: Door) -> None:
    door.ports["inst-1"] = 1
    reader, writer = await door.connect(master.client_context("gateway"), NAME)
    assert await reader.read() == b""
    writer.close()


async def test_the_relays_port_stays_the_same_over_restarts(home: AgentHome, door: Door) -> None:
    port = door.relay.port
    await door.relay.close()
    identity = home.identity()
    assert identity is not None
    again = Relay(home, identity, door.ports.get)
    await again.start("127.0.0.1", 0)
    assert again.port == port
    other = Relay(home, identity, door.ports.get)
    with pytest.raises(OSError, match="in use"):
        await other.start("127.0.0.1", port)
    await again.close()
