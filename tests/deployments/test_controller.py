"""The controller over real rows: places, rolls, drains, ends, and tells of it once."""

from __future__ import annotations

import pytest

from deployments import services
from deployments.models import Deployment, Event, Phase
from fleet.models import Availability, GatewayState, Server, ServerDesired
from fleet.services import set_availability
from tests.deployments.agents import Agents, deploy, live, servers, state, told
from tests.factories import (
    make_deployment,
    make_instance,
    make_model_version,
    make_ready_gateway,
    make_server,
)

pytestmark = pytest.mark.django_db


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


def test_a_restart_replaces_each_instance_without_serving_with_fewer(world: Agents) -> None:
    servers(world, "a", "b")
    deployment = deploy(world, replicas=2)
    world.run()
    before = {row.pk for row in live()}
    services.restart(deployment, now=world.now)

    def serves() -> None:
        (route,) = services.feed_routes()
        assert len(route.targets) >= 2

    world.run(20, each=serves)
    assert len(live()) == 2
    assert not before & {row.pk for row in live()}
    assert state(deployment) == "ready"


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
