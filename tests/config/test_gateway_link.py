"""Links of gateways with a real master: what they are fed, and what they deliver."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from apikeys.models import ApiKey, UsageHour
from apikeys.services import revoke_key
from config.gateway_feed import FeedState, difference
from deployments.models import Instance, Phase
from fleet.models import Gateway, GatewayState
from fleet.services import create_join_token, join_node, revoke_gateway
from tests.factories import make_deployment, make_instance, make_key, make_project
from tests.fleet.nodes import Link, Node, make_node
from tests.master import Master, in_database, until, utc_now
from wire.feed import FeedDelta, FeedRoute, FeedSnapshot, GatewayHello, GatewayStatus, UsageAck, UsageBatch, UsageRow
from wire.messages import Refused, Welcome

pytestmark = pytest.mark.django_db(transaction=True)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def join(master: Master, name: str = "gw-a") -> Node:
    request, keys = make_node(create_join_token(role="gateway", now=utc_now()), name, "gateway")
    return Node(join_node(request, utc_now()), keys, master.link_url, "gateway")


async def delta_with(link: Link, wanted: Callable[[FeedDelta], object], within_s: float) -> FeedDelta:
    """The first delta that holds what is wanted."""
    deadline = time.monotonic() + within_s
    while True:
        delta: FeedDelta = await link.next_of(FeedDelta, max(0.01, deadline - time.monotonic()))
        if wanted(delta):
            return delta


def test_a_gateway_gets_the_whole_state_at_first(master: Master) -> None:
    key, _ = make_key()
    instance = make_instance()
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            assert isinstance(await link.next(), Welcome)
            snapshot = await link.next(within_s=2.0)
            assert isinstance(snapshot, FeedSnapshot)
            assert [(item.id, item.active) for item in snapshot.keys] == [(key.id, True)]
            assert [item.id for item in snapshot.projects] == [str(key.project_id)]
            assert [target.instance_id for target in snapshot.routes[0].targets] == [instance.pk]
            assert snapshot.pepper == master.home.secrets()["key_pepper"]

    run(scenario())


def test_a_revoked_key_reaches_the_gateway_within_a_second(master: Master) -> None:
    key, _ = make_key()
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(FeedSnapshot)
            await in_database(lambda: revoke_key(key, utc_now()))
            delta = await delta_with(link, lambda delta: delta.keys, 0.8)
            assert [(item.id, item.active) for item in delta.keys] == [(key.id, False)]
            assert not delta.projects
            assert not delta.routes

    run(scenario())


def test_a_new_key_and_a_removed_one_reach_the_gateway(master: Master) -> None:
    key, _ = make_key()
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(FeedSnapshot)
            new, _ = await in_database(make_key, project=key.project)
            assert [item.id for item in (await delta_with(link, lambda delta: delta.keys, 1.5)).keys] == [new.id]
            await in_database(lambda: ApiKey.objects.filter(pk=key.pk).delete())
            assert (await delta_with(link, lambda delta: delta.gone_keys, 1.5)).gone_keys == (key.id,)

    run(scenario())


def test_an_instance_taken_out_of_service_leaves_the_route(master: Master) -> None:
    instance = make_instance()
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(FeedSnapshot)
            await in_database(lambda: Instance.objects.filter(pk=instance.pk).update(phase=Phase.DRAIN))
            route = (await delta_with(link, lambda delta: delta.routes, 1.5)).routes[0]
            assert (route.id, route.targets) == (instance.deployment.name, ())

    run(scenario())


def test_every_gateway_gets_every_change(master: Master) -> None:
    first, second = join(master), join(master, "gw-b")

    async def scenario() -> None:
        async with first.link() as one:
            await one.next_of(FeedSnapshot)
            async with second.link() as two:
                await two.next_of(FeedSnapshot)
                deployment = await in_database(make_deployment)
                for link in (one, two):
                    delta = await delta_with(link, lambda delta: delta.routes, 1.5)
                    assert delta.routes[0].id == deployment.name

    run(scenario())


def _batch(key: ApiKey, batch_id: str = "b-1") -> UsageBatch:
    row = UsageRow(
        hour=int(time.time()) // 3600 * 3600,
        project_id=str(key.project_id),
        key_id=key.id,
        model="chat",
        status=200,
        requests=2,
        prompt_tokens=10,
        cached_tokens=0,
        completion_tokens=5,
        duration_ms=900,
        ttft_ms=100,
    )
    return UsageBatch(batch_id=batch_id, rows=(row,))


def test_usage_is_counted_once_acknowledged_and_fed_back(master: Master) -> None:
    key, _ = make_key()
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(FeedSnapshot)
            for _ in range(2):
                await link.send(_batch(key))
            assert await link.next_of(UsageAck) == UsageAck(batch_id="b-1")
            seen = [await link.next(), await link.next()]
            assert UsageAck(batch_id="b-1") in seen
            delta = next(message for message in seen if isinstance(message, FeedDelta))
            assert delta.keys[0].used.tokens_today == 15
            assert await in_database(lambda: UsageHour.objects.get().prompt_tokens) == 10

    run(scenario())


def test_what_a_gateway_says_is_kept(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(FeedSnapshot)
            await link.send(GatewayStatus(at=time.time(), routable=("i-1",), in_flight={"i-1": 3}))
            kept = GatewayState.objects.filter(
                routable=["i-1"], in_flight={"i-1": 3}, host_id="host-gw", connected_since__isnull=False
            )
            await until(kept.exists, within_s=3)
        await until(GatewayState.objects.filter(connected_since__isnull=True).exists, within_s=3)

    run(scenario())


def test_a_revoked_gateway_is_cut_within_a_second(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(FeedSnapshot)
            await in_database(lambda: revoke_gateway(Gateway.objects.get(), utc_now()))
            refused = await link.next_of(Refused, 1.0)
            assert (refused.code, refused.final) == ("revoked", True)

    run(scenario())


def test_a_gateway_of_another_protocol_is_refused(master: Master) -> None:
    node = join(master)

    async def scenario() -> None:
        async with node.link(hello=False) as link:
            await link.send(GatewayHello(host_id="h", base_url="", protocol=99))
            assert (await link.next_of(Refused)).code == "protocol_too_new"

    run(scenario())


def test_an_agent_gets_no_keys(master: Master) -> None:
    request, keys = make_node(create_join_token(now=utc_now()))
    node = Node(join_node(request, utc_now()), keys, master.link_url, "gateway")

    async def scenario() -> None:
        async with node.link(hello=False) as link:
            assert (await link.next()).code == "bad_token"

    run(scenario())


def test_equal_states_have_no_difference() -> None:
    state = FeedState(routes={"a": FeedRoute(id="a", created=1, targets=())})
    assert difference(state, FeedState(routes=dict(state.routes))) is None


def test_a_difference_names_what_is_new_changed_and_gone() -> None:
    old = FeedState(routes={name: FeedRoute(id=name, created=1, targets=()) for name in "abc"})
    changed = FeedRoute(id="b", created=1, targets=(), reason="stopped")
    new = FeedState(routes={"b": changed, "c": old.routes["c"], "d": FeedRoute(id="d", created=1, targets=())})
    delta = difference(old, new)
    assert delta is not None
    assert [route.id for route in delta.routes] == ["b", "d"]
    assert delta.gone_routes == ("a",)


def test_a_project_switched_off_reaches_the_gateway(master: Master) -> None:
    project = make_project()
    node = join(master)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(FeedSnapshot)
            project.active = False
            await in_database(project.save)
            delta = await delta_with(link, lambda delta: delta.projects, 1.5)
            assert [(item.id, item.active) for item in delta.projects] == [(str(project.pk), False)]

    run(scenario())
