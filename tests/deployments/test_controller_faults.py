"""What the controller does when servers, rows or the database are not as they should be."""

from __future__ import annotations

import pytest
from django.db import OperationalError, connection

from deployments import services
from deployments.controller import Controller
from deployments.models import Deployment, Event
from fleet.models import Server, ServerDesired
from fleet.services import revoke_server
from tests.deployments.agents import Agents, deploy, live, servers, state, told
from tests.factories import (
    make_deployment,
    make_facts,
    make_instance,
    make_model_version,
)

pytestmark = pytest.mark.django_db
SMALL = 2 << 30  # memory of a server that holds one instance of the default model, and no second


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
    monkeypatch.setattr("deployments.planner.place_all.__defaults__", (2, None))
    servers(world, "a", "b")
    deployment = deploy(world, replicas=5, parameters={"parallel": 1, "context_tokens": 128, "prompt_cache_mib": 0})
    world.controller.step(world.now)
    assert len(live()) == 2
    world.run()
    assert state(deployment) == "ready"
    assert len(live()) == 5
