"""Links of agents with a real master: real sockets, TLS, its own process, and no channel layer."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Coroutine
from typing import Any

import aiohttp
import msgspec
import pytest

from fleet.models import Server, ServerState
from fleet.services import create_join_token, join_node, revoke_server, set_desired
from tests.fleet.nodes import Link, Node, make_hello, make_metrics, make_node, make_observed
from tests.fleet.specs import make_spec
from tests.master import Master, in_database, until, utc_now
from wire import envelope
from wire.certs import load_signing_key, make_ca
from wire.messages import Desired, DesiredState, Refused, Welcome
from wire.tokens import make_node_token

pytestmark = pytest.mark.django_db(transaction=True)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def join(master: Master, name: str = "srv-a", role: str = "agent") -> Node:
    request, keys = make_node(create_join_token(role=role, now=utc_now()), name, role)
    return Node(join_node(request, utc_now()), keys, master.link_url, role)


def opened(node: Node, desired: Desired, newest: int = 0) -> DesiredState:
    """The state inside, when the agent may act on it."""
    payload = envelope.open_envelope(
        node.master_key,
        desired.envelope,
        purpose="desired",
        server_id=node.id,
        now=time.time(),
        newest_generation=newest,
    )
    return msgspec.json.decode(payload, type=DesiredState)


def test_an_agent_is_welcomed_and_gets_its_state_at_once(master: Master) -> None:
    node = join(master)
    set_desired(node.id, (make_spec(),), utc_now())

    async def scenario() -> None:
        async with node.link() as link:
            assert (await link.next()).node_id == node.id
            state = opened(node, await link.next(within_s=1.0))
            assert (state.generation, state.instances) == (1, (make_spec(),))

    run(scenario())


def test_a_raised_generation_is_sent_within_a_second(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            assert isinstance(await link.next(), Welcome)
            assert opened(node, await link.next()).generation == 0
            await in_database(set_desired, node.id, (make_spec(),), utc_now())
            assert opened(node, await link.next(within_s=1.5), newest=1).generation == 1

    run(scenario())


def test_what_an_agent_reports_is_stored(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.send(make_metrics(cpu_percent=37.0))
            await link.send(make_observed(4, rejected="no"))
            await until(
                lambda: ServerState.objects.filter(
                    pk=node.id,
                    connected_since__isnull=False,
                    load__cpu_percent=37.0,
                    observed_generation=4,
                    rejected="no",
                    host_id="host-1",
                ).exists(),
                within_s=3,
            )
        await until(lambda: ServerState.objects.filter(pk=node.id, connected_since__isnull=True).exists(), within_s=5)

    run(scenario())


async def refusal(link: Link, within_s: float = 5.0) -> Refused:
    refused: Refused = await link.next_of(Refused, within_s)
    await link.closed()
    return refused


def test_a_revoked_server_is_cut_within_a_second_and_kept_out(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(Desired)
            await in_database(lambda: revoke_server(Server.objects.get(pk=node.id), utc_now()))
            began = time.monotonic()
            refused = await refusal(link)
            assert time.monotonic() - began < 1.0
            assert (refused.code, refused.final) == ("revoked", True)
        async with node.link(hello=False) as link:
            assert (await refusal(link)).code == "revoked"

    run(scenario())


def test_a_deleted_server_is_cut(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(Desired)
            await in_database(lambda: Server.objects.all().delete())
            assert (await refusal(link, 2.0)).final

    run(scenario())


def test_a_second_link_of_a_server_replaces_the_first(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link() as first:
            await first.next_of(Desired)
            async with node.link() as second:
                refused = await refusal(first)
                assert (refused.code, refused.final) == ("replaced", True)
                await second.next_of(Desired)
                await second.send(make_observed(7))
                await until(lambda: ServerState.objects.filter(pk=node.id, observed_generation=7).exists())
                assert await in_database(lambda: ServerState.objects.get(pk=node.id).connected_since)

    run(scenario())


@pytest.mark.parametrize("kind", ["none", "nonsense", "another", "gateway", "old"])
def test_a_node_that_does_not_prove_itself_is_told_and_closed(master: Master, kind: str) -> None:
    node, other = join(master), join(master, "srv-b")
    gateway = join(master, "gw-a", "gateway")
    foreign = other.keys.signing_key_pem
    bearer = {
        "none": " ",
        "nonsense": "x.y.z",
        "another": make_node_token(load_signing_key(foreign), node.id, time.time()),
        "gateway": gateway.bearer(),
        "old": node.bearer(time.time() - 600),
    }[kind]

    async def scenario() -> None:
        async with node.link(hello=False, bearer=bearer) as link:
            refused = await refusal(link)
            assert (refused.code, refused.final) == ("bad_token", True)
            assert refused.remedy

    run(scenario())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "bad_message"),
        ('{"type":"order"}', "bad_message"),
        ('{"type":"metrics"}', "bad_message"),
        ("x" * 950_000, "bad_message"),
    ],
)
def test_a_message_that_is_not_understood_closes_the_link(master: Master, text: str, code: str) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(Welcome)
            await link.socket.send_str(text)
            assert (await refusal(link)).code == code

    run(scenario())


def test_a_message_beyond_what_any_link_takes_closes_it(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(Desired)
            await link.socket.send_str("x" * 2_000_000)
            assert await link.closed() is not None

    run(scenario())


def test_a_first_message_other_than_hello_is_refused(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link(hello=False) as link:
            await link.send(make_observed())
            assert "hello" in (await refusal(link)).message

    run(scenario())


@pytest.mark.parametrize(("protocol", "code"), [(0, "protocol_too_old"), (99, "protocol_too_new")])
def test_a_node_of_another_protocol_is_told_what_to_update(master: Master, protocol: int, code: str) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link(hello=False) as link:
            await link.send(make_hello(protocol=protocol))
            refused = await refusal(link)
            assert (refused.code, refused.final) == (code, True)
            assert "pdate the" in refused.remedy

    run(scenario())


def test_a_generation_beyond_all_reason_is_refused(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link(hello=False) as link:
            await link.send(make_hello(generation=2**62))
            assert (await refusal(link)).code == "bad_message"

    run(scenario())


def test_an_agent_that_verifies_another_ca_does_not_connect(master: Master) -> None:
    node = join(master)
    node.tls = ssl.create_default_context(cadata=make_ca("Another CA", utc_now())[1])

    async def scenario() -> None:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            async with node.link():
                pass

    run(scenario())


def test_many_links_cost_little(master: Master) -> None:
    nodes = [join(master, f"srv-{number}") for number in range(40)]

    async def beat(node: Node, rounds: int) -> None:
        async with node.link() as link:
            await link.next_of(Desired)
            for _ in range(rounds):
                await link.send(make_metrics())
                await link.send(make_observed())
                await asyncio.sleep(0.1)

    async def scenario() -> None:
        await asyncio.gather(*(beat(node, 20) for node in nodes))
        seen = ServerState.objects.filter(load_at__isnull=False, observed__isnull=False)
        await until(lambda: seen.count() == 40, within_s=5)

    run(scenario())
