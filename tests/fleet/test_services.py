"""The verbs of the fleet."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Any

import msgspec
import pytest
from pytest_django import DjangoAssertNumQueries, Settings

from fleet import services
from fleet.errors import Revoked
from fleet.models import Availability, Gateway, Server, ServerDesired, ServerState
from fleet.reports import ServerReport, store_server_reports
from fleet.signals import server_observed
from fleet.status import NodeStatus, status_of
from tests.factories import make_facts, make_ready_gateway, make_server
from tests.fleet.nodes import Node, make_hello, make_metrics, make_node, make_observed
from tests.fleet.specs import make_spec
from wire import certs, envelope
from wire.errors import BadToken
from wire.messages import DesiredState

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("ca_dir")]
SECOND = dt.timedelta(seconds=1)


def join(now: dt.datetime, name: str = "srv-a", role: str = "agent") -> Node:
    request, keys = make_node(services.create_join_token(role=role, now=now), name, role)
    return Node(services.join_node(request, now), keys, "https://unused", role)


# ------------------------------------------------------------------------------------------------ who it is


def test_a_node_proves_itself_by_a_token_of_its_own_key(now: dt.datetime) -> None:
    node = join(now)
    assert services.authenticate_node(f"Bearer {node.bearer()}", "agent", now).pk == node.id


def test_a_token_of_another_nodes_key_is_refused(now: dt.datetime) -> None:
    node, other = join(now), join(now, "srv-b")
    other.id = node.id
    with pytest.raises(BadToken):
        services.authenticate_node(other.bearer(), "agent", now)


def test_an_agent_is_no_gateway(now: dt.datetime) -> None:
    with pytest.raises(BadToken):
        services.authenticate_node(join(now).bearer(), "gateway", now)


def test_an_old_token_is_refused(now: dt.datetime) -> None:
    with pytest.raises(BadToken, match="expired"):
        services.authenticate_node(join(now).bearer(now.timestamp() - 600), "agent", now)


@pytest.mark.parametrize("bearer", ["", "Bearer ", "Bearer x.y.z", "Basic abc"])
def test_nonsense_is_no_token(bearer: str, now: dt.datetime) -> None:
    with pytest.raises(BadToken):
        services.authenticate_node(bearer, "agent", now)


def test_a_revoked_node_is_refused_and_told_so(now: dt.datetime) -> None:
    node = join(now)
    services.revoke_server(Server.objects.get(), now)
    with pytest.raises(Revoked, match="revoked at"):
        services.authenticate_node(node.bearer(), "agent", now)


# ------------------------------------------------------------------------------------------------ desired state


def test_a_changed_desired_state_raises_the_generation(now: dt.datetime) -> None:
    server = make_server()
    assert services.set_desired(server.pk, (make_spec("i-1"),), now) == 1
    assert services.set_desired(server.pk, (make_spec("i-1"), make_spec("i-2")), now) == 2
    assert services.set_desired(server.pk, (), now) == 3


def test_an_equal_desired_state_does_not(now: dt.datetime) -> None:
    server = make_server()
    services.set_desired(server.pk, (make_spec(),), now)
    assert services.set_desired(server.pk, (make_spec(),), now) == 1
    assert services.set_desired(make_server().pk, (), now) == 0


def test_the_generation_outgrows_what_the_agent_accepted_before(now: dt.datetime) -> None:
    server = make_server(state={"observed_generation": 41})
    assert services.set_desired(server.pk, (make_spec(),), now) == 42


def test_a_state_older_than_the_agents_is_numbered_anew_when_it_says_hello(now: dt.datetime) -> None:
    server = make_server()
    services.set_desired(server.pk, (make_spec(),), now)
    services.record_hello(server.pk, make_hello(generation=9), now)
    row = ServerDesired.objects.get()
    assert (row.generation, row.payload["generation"]) == (10, 10)


def test_revoking_a_gateway_has_every_relay_refuse_its_certificate(now: dt.datetime) -> None:
    node = join(now, role="gateway", name="edge")
    old = certs.serial(Gateway.objects.get(pk=node.id).certificate_pem)
    first, second = make_server(), make_server()
    services.set_desired(first.pk, (make_spec(),), now)
    services.revoke_gateway(Gateway.objects.get(pk=node.id), now)
    join(now, role="gateway", name="edge")  # anew, under its old name
    services.set_desired(second.pk, (make_spec(),), now)
    states = services.sealed_states([first.pk, second.pk], now)
    for server, generation in ((first, 2), (second, 1)):
        state = msgspec.json.decode(base64.b64decode(states[server.pk].payload), type=DesiredState)
        assert (state.generation, state.revoked_certificates, state.instances) == (generation, (old,), (make_spec(),))
    assert Gateway.objects.get(pk=node.id).revoked_at is None


def test_a_sealed_state_opens_with_the_masters_key_for_its_server_only(now: dt.datetime) -> None:
    node = join(now)
    services.set_desired(node.id, (make_spec(),), now)
    sealed = services.sealed_states([node.id], now)[node.id]
    opened = envelope.open_envelope(
        node.master_key, sealed, purpose="desired", server_id=node.id, now=now.timestamp(), newest_generation=1
    )
    assert msgspec.json.decode(opened, type=DesiredState).instances == (make_spec(),)


def test_a_server_that_was_never_given_anything_has_an_empty_state(now: dt.datetime) -> None:
    node = join(now)
    assert services.sealed_states([node.id], now)[node.id].generation == 0


# ------------------------------------------------------------------------------------------------ observed state


def test_hello_metrics_and_observed_are_kept(now: dt.datetime) -> None:
    server = make_server(online=False)
    services.record_hello(server.pk, make_hello(facts=make_facts(host_id="h-7")), now)
    services.record_metrics(server.pk, make_metrics(cpu_percent=42.0), now + SECOND)
    services.record_observed(server.pk, make_observed(3, rejected="bad signature"), now + 2 * SECOND)
    state = ServerState.objects.get(server=server)
    assert (state.host_id, state.facts["host_id"], state.connected_since) == ("h-7", "h-7", now)
    assert (state.load["cpu_percent"], state.load_at) == (42.0, now + SECOND)
    assert (state.observed_generation, state.rejected) == (3, "bad signature")
    assert state.last_seen_at == now + 2 * SECOND


def test_an_observed_state_is_told_after_it_is_stored(now: dt.datetime) -> None:
    server = make_server()
    heard: list[dict[str, Any]] = []

    def receiver(**told: Any) -> None:
        heard.append({"stored": ServerState.objects.get(server=server).observed_generation} | told)

    server_observed.connect(receiver)
    try:
        services.record_observed(server.pk, make_observed(5), now)
    finally:
        server_observed.disconnect(receiver)
    assert (heard[0]["server_id"], heard[0]["observed"].generation, heard[0]["stored"]) == (server.pk, 5, 5)


def test_reports_of_hundreds_of_servers_take_a_handful_of_queries(
    now: dt.datetime, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    servers = Server.objects.bulk_create([Server(name=f"s{number}", public_key_pem="-") for number in range(400)])
    reports = [ServerReport(server.pk, now, metrics=make_metrics(), metrics_at=now) for server in servers]
    with django_assert_max_num_queries(10):  # SQLite takes 999 values a statement
        store_server_reports(reports)
    assert ServerState.objects.filter(last_seen_at=now).count() == 400


@pytest.mark.django_db(transaction=True)
def test_a_report_of_a_deleted_server_does_not_hold_up_the_others(now: dt.datetime) -> None:
    server = make_server(online=False)
    reports = [ServerReport(pk, now, metrics=make_metrics(), metrics_at=now) for pk in ("srv-gone", server.pk)]
    store_server_reports(reports)
    assert ServerState.objects.get().last_seen_at == now


def test_a_disconnect_of_an_older_link_leaves_the_newer_one(now: dt.datetime) -> None:
    server = make_server(now=now)
    services.record_disconnect(server.pk, now - SECOND)
    assert ServerState.objects.get().connected_since == now
    services.record_disconnect(server.pk, now)
    assert ServerState.objects.get().connected_since is None


def test_lost_servers_keep_the_time_of_their_loss_until_found(now: dt.datetime) -> None:
    server = make_server()
    services.mark_lost([server.pk], now)
    services.mark_lost([server.pk], now + SECOND)
    assert ServerState.objects.get().lost_at == now
    services.mark_found([server.pk], now)
    assert ServerState.objects.get().lost_at is None


def test_live_gateways_are_those_that_spoke_within_the_lease(now: dt.datetime, settings: Settings) -> None:
    live = make_ready_gateway(now=now)
    make_ready_gateway(now=now - dt.timedelta(seconds=settings.LEASE_S + 1))
    services.revoke_gateway(make_ready_gateway(now=now), now)
    assert [state.gateway for state in services.live_gateways(now)] == [live]


def test_a_server_is_cordoned_drained_and_activated(now: dt.datetime) -> None:
    server = make_server()
    for availability in (Availability.CORDONED, Availability.DRAINING, Availability.ACTIVE):
        services.set_availability(server, availability, now)
        server.refresh_from_db()
        assert server.availability == availability


# ------------------------------------------------------------------------------------------------ status


def test_status_follows_what_was_seen(now: dt.datetime) -> None:
    lease_s = 15.0
    server = make_server(now=now)
    assert status_of(server, now, lease_s).state is NodeStatus.ONLINE
    assert status_of(server, now + 16 * SECOND, lease_s).state is NodeStatus.LOST
    server.state.connected_since = None
    assert status_of(server, now + 5 * SECOND, lease_s).state is NodeStatus.OFFLINE
    assert status_of(make_server(online=False), now, lease_s).state is NodeStatus.NEVER
    server.revoked_at = now
    assert status_of(server, now, lease_s).state is NodeStatus.REVOKED
