"""Engines on other machines: through a relay, by mutual TLS. And HTTPS towards clients."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway.server import Gateway, Listen
from gateway.service import Settings
from tests.fakes.engine import FakeEngine, running_engine
from tests.gateway.master import NOW, FakeMaster, make_route, make_target, server_context, until
from tests.gateway.test_errors import refused
from tests.gateway.test_relay import events, text_of
from tests.gateway.world import CHAT, World
from wire import certs

pytestmark = pytest.mark.asyncio


class Relay:
    """Byte for byte to the engine of the name asked for; only for holders of a gateway's certificate."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports
        self.port = 0
        self.peers: list[str] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = writer.get_extra_info("ssl_object")
        subject = dict(item[0] for item in tls.getpeercert()["subject"])
        self.peers.append(subject["organizationalUnitName"])
        self.connections += 1
        port = self.ports[tls.context.asked.pop()]
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class _Context(ssl.SSLContext):
    asked: list[str]


@asynccontextmanager
async def running_relay(master: FakeMaster, ports: dict[str, int], *, server_id: str) -> AsyncIterator[Relay]:
    relay = Relay(ports)
    made = server_context(master.ca_key, master.ca_pem, (certs.relay_wildcard(server_id),), role="agent", kind=_Context)
    made.asked = []
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=master.ca_pem)
    made.sni_callback = lambda sock, name, context: made.asked.append(name)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0, ssl=made)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()


async def test_engines_elsewhere_are_reached_through_their_relay_by_name(world: World) -> None:
    async with running_engine(FakeEngine(words=("second",))) as second:
        ports = {
            certs.relay_name("one", "srv"): world.engine.port,
            certs.relay_name("two", "srv"): second.port,
        }
        async with running_relay(world.master, ports, server_id="srv") as relay:
            for name, words in (("one", "Hello wörld ✓"), ("two", "second")):
                # the first address does not answer: the next one is taken
                target = make_target(
                    1,
                    "elsewhere",
                    instance_id=name,
                    server_id="srv",
                    relay_addresses=("127.0.0.9", "127.0.0.1"),
                    relay_port=relay.port,
                )
                await world.route(make_route(f"model-{name}", target))
                for _ in range(3):
                    async with world.post(world.ask(model=f"model-{name}", stream=True)) as response:
                        assert text_of(await events(response)) == words
            assert set(relay.peers) == {"gateway"}
            assert relay.connections == 2  # kept alive, one a target


async def test_a_relay_with_another_servers_certificate_is_refused(world: World) -> None:
    ports = {certs.relay_name("one", "srv"): world.engine.port}
    async with running_relay(world.master, ports, server_id="other") as relay:
        target = make_target(
            1, "elsewhere", instance_id="one", server_id="srv", relay_addresses=("127.0.0.1",), relay_port=relay.port
        )
        await world.route(make_route("far", target))
        world.gateway.service.relay._budget_s = 0.2  # type: ignore[union-attr]
        status, error, _ = await refused(world.post(world.ask(model="far")))
        assert (status, error["code"]) == (502, "engine_unreachable")
        assert not world.engine.requests


async def test_a_relay_of_another_ca_is_refused(world: World) -> None:
    ports = {certs.relay_name("one", "srv"): world.engine.port}
    async with running_relay(FakeMaster(), ports, server_id="srv") as relay:
        target = make_target(
            1, "elsewhere", instance_id="one", server_id="srv", relay_addresses=("127.0.0.1",), relay_port=relay.port
        )
        await world.route(make_route("far", target))
        world.gateway.service.relay._budget_s = 0.2  # type: ignore[union-attr]
        assert (await refused(world.post(world.ask(model="far"))))[0] == 502


async def test_clients_can_be_served_over_https(world: World, tmp_path: Path) -> None:
    pair = certs.make_tls_key()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = certs.issue(
        world.master.ca_key,
        world.master.ca_pem,
        pair.public_pem,
        common_name="gw",
        role="gateway",
        names=("127.0.0.1",),
        now=NOW,
    )
    cert.write_text(issued)
    key.write_text(pair.private_pem)
    identity = world.home.identity()
    assert identity is not None
    listen = Listen("127.0.0.1", 0, str(cert), str(key))
    gateway = Gateway(world.home, identity, listen, Settings(access_log=False))
    task = asyncio.create_task(gateway.run())
    base = f"https://127.0.0.1:{await gateway.port}"
    await until(lambda: gateway.service is not None and gateway.service.state is not None)
    tls = ssl.create_default_context(cadata=world.master.ca_pem)
    headers = {"authorization": f"Bearer {world.secret}"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.post(base + CHAT, json=world.ask(), ssl=tls) as response,
    ):
        assert response.status == 200
    gateway.stop()
    await task
