"""The controller over real rows: places, rolls, drains, ends, and tells of it once."""

from __future__ import annotations

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from deployments import services
from deployments.controller import Controller
from deployments.models import Deployment, Event, Instance, Phase
from fleet.models import Availability, GatewayState, Server, ServerDesired
from fleet.services import revoke_server, set_availability
from tests.deployments.agents import Agents
from tests.factories import (
    make_deployment,
    make_facts,
    make_instance,
    make_model_version,
    make_ready_gateway,
    make_server,
)

pytestmark = pytest.mark.django_db
SMALL = 2 << 30  # memory of a server that holds one instance of the default model, and no second


@pytest.fixture
def world() -> Agents:
    return Agents(timezone.now())


def deploy(world: Agents, **fields) -> Deployment:
    fields = {"name": "chat", "model_version": make_model_version(), "now": world.now} | fields
    return services.create_deployment(**fields)


def servers(world: Agents, *names: str, **fields) -> list[Server]:
    return [make_server(name=name, now=world.now, **fields) for name in names]


def state(deployment: Deployment) -> str:
    deployment.refresh_from_db()
    return services.status_of(deployment).state.value


def told(kind: str) -> int:
    return Event.objects.filter(kind=kind).count()


def live() -> list[Instance]:
    return list(Instance.objects.exclude(phase=Phase.ENDED))


# ------------------------------------------------------------------------------------------------ plain life


def test_a_deployment_becomes_ready_and_routable(world: Agents) -> None:
    make_server(name="a", now=world.now)
    deployment = deploy(world)
    world.run()
    assert state(deployment) == "ready"
    (route,) = services.feed_routes()
    assert route.id == "chat"
    assert len(route.targets) == 1
    assert {"instance.placed", "instance.ready"} <= world.kinds()
    payload = ServerDesired.objects.get().payload
    assert payload["instances"][0]["engine"]["argv"][:2] == ["--host", "{host}"]


def test_an_idle_pass_writes_and_tells_nothing(world: Agents, django_assert_max_num_queries) -> None:
    make_server(name="a", now=world.now)
    deploy(world)
    world.run()
    events, generation = Event.objects.count(), ServerDesired.objects.get().generation
    with django_assert_max_num_queries(9):
        world.controller.step(world.now)
    assert Event.objects.count() == events
    assert ServerDesired.objects.get().generation == generation


def test_replicas_are_spread_and_scaled_down_again(world: Agents) -> None:
    servers(world, "a", "b")
    deployment = deploy(world, replicas=2)
    world.run()
    assert world.ready_on() == ["a", "b"]
    services.scale(deployment, 1, now=world.now)
    world.run()
    assert len(world.ready_on()) == 1
    assert len(live()) == 1
    assert told("instance.ended") == 1


def test_a_stopped_deployment_ends_and_starts_again(world: Agents) -> None:
    servers(world, "a")
    deployment = deploy(world)
    world.run()
    services.stop(deployment, now=world.now)
    world.run()
    assert state(deployment) == "stopped"
    assert live() == []
    assert ServerDesired.objects.get().payload["instances"] == []
    services.start(deployment, now=world.now)
    world.run()
    assert state(deployment) == "ready"


def test_one_stopped_before_its_server_ever_had_a_desired_state_ends_too(world: Agents) -> None:
    (server,) = servers(world, "a")
    deployment = make_deployment(running=False)
    make_instance(deployment=deployment, server=server, ready=False, now=world.now)
    world.run()
    assert live() == []
    assert state(deployment) == "stopped"


def test_a_deleted_deployment_goes_with_its_last_instance_and_its_events_stay(world: Agents) -> None:
    servers(world, "a")
    services.delete(deploy(world), now=world.now)
    deploy(world)  # its name is free at once
    world.run()
    assert Deployment.objects.count() == 1
    assert told("deployment.deleted") == 1


def test_gpus_are_given_out_once(world: Agents) -> None:
    (server,) = servers(world, "a", gpus=2)
    big = make_model_version(size_bytes=14 << 30)
    for name in ("x", "y", "z"):
        deploy(world, name=name, model_version=big, placement={"gpus": 1})
    world.run()
    given = sorted(row.gpu_indexes for row in live())
    assert given == [[0], [1]]
    refused = Deployment.objects.get(explanation__gt="")
    assert refused.refusals[server.name].startswith("not enough GPU memory: needs ")
    assert state(refused) == "unplaceable"


# ------------------------------------------------------------------------------------------------ rollout and drain


def test_an_update_rolls_without_serving_with_fewer(world: Agents) -> None:
    servers(world, "a", "b")
    deployment = deploy(world, replicas=2)
    world.run()
    services.update_deployment(deployment, if_version=None, now=world.now, parameters={"parallel": 2})

    def serves() -> None:
        (route,) = services.feed_routes()
        assert len(route.targets) >= 2

    world.run(20, each=serves)
    assert {row.revision.number for row in live()} == {2}
    assert state(deployment) == "ready"
    assert (told("rollout.started"), told("rollout.finished")) == (1, 1)


def test_a_failing_revision_is_halted_once_and_a_rollback_ends_it(world: Agents) -> None:
    servers(world, "a", "b")
    deployment = deploy(world)
    world.run()
    world.fails = lambda server, revision: revision == 2
    services.update_deployment(deployment, if_version=None, now=world.now, parameters={"parallel": 2})
    world.run(20)
    assert world.ready_on() != []
    assert state(deployment) == "updating"
    assert "The rollout is halted" in services.status_of(deployment).reason
    assert told("rollout.halted") == 1
    services.rollback(deployment, 1, now=world.now)
    world.run(20)
    assert state(deployment) == "ready"
    assert {row.revision.number for row in live()} == {3}


def test_draining_a_server_moves_what_it_has(world: Agents) -> None:
    servers(world, "a", "b")
    deploy(world)
    world.run()
    (name,) = world.ready_on()
    set_availability(Server.objects.get(name=name), Availability.DRAINING, world.now)

    def serves() -> None:
        assert world.ready_on() != []

    world.run(20, each=serves)
    assert world.ready_on() == [{"a": "b", "b": "a"}[name]]
    assert len(live()) == 1


def test_a_cordoned_server_keeps_what_it_has_and_gets_nothing_new(world: Agents) -> None:
    (server,) = servers(world, "a")
    deployment = deploy(world)
    world.run()
    set_availability(server, Availability.CORDONED, world.now)
    services.scale(deployment, 2, now=world.now)
    world.run()
    assert world.ready_on() == ["a"]
    deployment.refresh_from_db()
    assert deployment.refusals == {"a": "cordoned"}
    assert state(deployment) == "degraded"


def test_an_instance_is_not_stopped_while_a_gateway_may_send_to_it(world: Agents) -> None:
    servers(world, "a")
    deployment = deploy(world)
    world.run()
    (instance,) = live()
    gateway = make_ready_gateway(now=world.now)

    def gateway_says(**fields) -> None:
        GatewayState.objects.filter(gateway=gateway).update(last_seen_at=world.now, **fields)

    gateway_says(routable=[instance.pk], in_flight={instance.pk: 1})
    services.stop(deployment, now=world.now)
    world.run(30, each=gateway_says)
    instance.refresh_from_db()
    assert instance.phase == Phase.DRAIN
    gateway_says(routable=[])
    world.run(5, each=gateway_says)
    instance.refresh_from_db()
    assert instance.phase == Phase.DRAIN, "a request is still in flight"
    gateway_says(in_flight={})
    world.run(5, each=gateway_says)
    assert live() == []


# ------------------------------------------------------------------------------------------------ faults


def test_a_lost_server_is_replaced_and_its_surplus_ends_when_it_is_back(world: Agents) -> None:
    servers(world, "a", "b", "c")
    deployment = deploy(world)
    world.run()
    (name,) = world.ready_on()
    world.dead = {name}
    world.run(17)
    assert told("server.lost") == 1
    assert len(live()) == 1, "it is left there at first: its engine may well serve"
    world.run(35)
    assert len(world.ready_on()) == 1
    assert name not in world.ready_on()
    world.dead = set()
    world.run(10)
    assert told("server.found") == 1
    assert len(live()) == 1
    assert state(deployment) == "ready"
    assert all(row.payload["instances"] == [] for row in ServerDesired.objects.filter(server__name=name))


def test_when_many_servers_vanish_nothing_is_evicted_and_it_is_told_once(world: Agents) -> None:
    servers(world, *"abcdef")
    deployment = deploy(world, replicas=6)
    world.run()
    before = {row.pk for row in live()}
    world.dead = {"a", "b", "c", "d"}
    world.run(60)
    assert {row.pk for row in live()} == before
    assert told("server.lost") == 4
    assert told("fleet.mass_loss") == 1
    event = Event.objects.get(kind="fleet.mass_loss")
    assert event.message == "4 servers vanished together; nothing is evicted until they are back: a, b, c, d."
    assert event.remedy
    world.controller = Controller("next", clock=lambda: world.monotonic)  # a new leader keeps the brake
    world.run(45)
    assert {row.pk for row in live()} == before
    world.dead = set()
    world.run(10)
    assert {row.pk for row in live()} == before
    assert (told("fleet.mass_loss"), told("fleet.mass_loss_over")) == (1, 1)
    assert state(deployment) == "ready"


def test_a_revoked_server_is_replaced_at_once(world: Agents) -> None:
    servers(world, "a", "b")
    deploy(world)
    world.run()
    (name,) = world.ready_on()
    revoke_server(Server.objects.get(name=name), world.now)
    world.run(4)
    assert world.ready_on() == [{"a": "b", "b": "a"}[name]]
    assert len(live()) == 1


def test_what_keeps_failing_on_one_server_goes_to_another(world: Agents) -> None:
    servers(world, "a", "b")
    world.fails = lambda server, revision: server == "a"
    deployment = deploy(world)
    world.run(20)
    assert world.ready_on() == ["b"]
    assert told("instance.given_up") <= 1
    assert state(deployment) == "ready"


def test_what_fits_nowhere_is_told_once_with_every_reason_and_placed_when_there_is_room(world: Agents) -> None:
    servers(world, "a", facts=make_facts(memory_bytes=SMALL))
    deployment = deploy(world, model_version=make_model_version(size_bytes=4 << 30))
    world.run(10)
    assert state(deployment) == "unplaceable"
    reason = services.status_of(deployment).reason
    assert reason.startswith("Does not fit on the only server: not enough memory")
    assert told("deployment.unplaceable") == 1
    assert Event.objects.get(kind="deployment.unplaceable").details["refusals"]["a"].startswith("not enough memory")
    servers(world, "b")
    world.run()
    assert state(deployment) == "ready"
    assert told("deployment.placeable") == 1


def test_stopping_what_fits_nowhere_is_not_told_as_a_place_found(world: Agents) -> None:
    deployment = deploy(world)
    world.run(2)
    services.stop(deployment, now=world.now)
    world.run(2)
    assert state(deployment) == "stopped"
    assert (told("deployment.unplaceable"), told("deployment.placeable")) == (1, 0)


def test_without_a_server_it_says_so(world: Agents) -> None:
    deployment = deploy(world)
    world.run(2)
    assert state(deployment) == "unplaceable"
    assert services.status_of(deployment).reason == "There is no server"


def test_an_update_in_place_is_not_called_unplaceable(world: Agents) -> None:
    servers(world, "a", facts=make_facts(memory_bytes=SMALL))
    deployment = deploy(world)
    world.run()
    assert state(deployment) == "ready"
    services.update_deployment(deployment, if_version=None, now=world.now, parameters={"parallel": 3})
    world.run(20)
    assert state(deployment) == "ready"
    assert {row.revision.number for row in live()} == {2}
    assert told("deployment.unplaceable") == 0


def test_a_spec_that_is_not_taken_any_more_harms_no_other(world: Agents) -> None:
    a, _ = servers(world, "a", "b")
    bad = make_deployment(name="bad", parameters={"parallel": 0})
    refused = make_instance(deployment=bad, server=a, ready=False, now=world.now)
    good = deploy(world, replicas=2)
    world.run(10)
    assert state(good) == "ready"
    refused.refresh_from_db()
    assert refused.state == "failed"
    assert "parallel: must be at least 1" in refused.reason
    assert told("instance.failed") == 1


def test_what_could_not_be_stored_is_told_at_the_next_pass(world: Agents) -> None:
    deployment = deploy(world)

    def broken(execute, sql, params, many, context):
        if sql.startswith("INSERT") and "deployments_event" in sql:
            raise OperationalError("the disk is full")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(broken), pytest.raises(OperationalError):
        world.controller.step(world.now)
    deployment.refresh_from_db()
    assert deployment.explanation == "", "nothing is half done"
    world.run(2)
    assert told("deployment.unplaceable") == 1


def test_a_new_leader_repeats_no_event(world: Agents) -> None:
    deploy(world)
    world.run(3)
    world.controller.resign()
    world.controller = Controller("next", clock=lambda: world.monotonic)
    world.run(3)
    assert told("deployment.unplaceable") == 1


@pytest.mark.parametrize("table", ["deployments_deployment", "fleet_serverdesired"])
def test_a_pass_with_too_much_to_write_leaves_the_rest_to_the_next_and_keeps_the_lease(
    world: Agents, table: str
) -> None:
    servers(world, *"abcdef")
    deployment = deploy(world, replicas=6)
    for number in range(6):
        deploy(world, name=f"huge-{number}", model_version=make_model_version(size_bytes=900 << 30))

    def slow(execute, sql, params, many, context):
        if sql.startswith(f'UPDATE "{table}"'):
            world.monotonic += 1.0
        return execute(sql, params, many, context)

    with connection.execute_wrapper(slow):
        for _ in range(8):
            assert world.controller.step(world.now), "it lost its lease"
            world.pass_time(0.5)
    world.run()
    assert Deployment.objects.exclude(explanation="").count() == 6
    assert state(deployment) == "ready"


def test_more_replicas_than_a_pass_places_come_with_the_next_ones(world: Agents, monkeypatch) -> None:
    monkeypatch.setattr("deployments.planner.place_all.__defaults__", (2,))
    servers(world, "a", "b")
    deployment = deploy(world, replicas=5, parameters={"parallel": 1, "context_tokens": 128, "prompt_cache_mib": 0})
    world.controller.step(world.now)
    assert len(live()) == 2
    world.run()
    assert state(deployment) == "ready"
    assert len(live()) == 5
