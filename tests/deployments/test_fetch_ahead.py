"""Model files that are on a server before an instance needs them."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from deployments import services
from deployments.models import Deployment
from fleet.models import Server, ServerDesired, ServerState
from models_registry import pins
from models_registry.models import ModelVersion
from tests.deployments.agents import Agents, deploy, servers, state
from tests.factories import make_model_version

pytestmark = pytest.mark.django_db


def tells(world: Agents, server: Server, *models: tuple[ModelVersion, float, str]) -> None:
    """The server's agent says what it has: (version, progress, problem)."""
    cached = [
        {"digest": version.digest, "model_name": str(version), "progress": progress, "problem": problem}
        for version, progress, problem in models
    ]
    ServerState.objects.filter(server=server).update(cache={"models": cached}, cache_at=world.now)


def held(server: Server) -> list[str]:
    row = ServerDesired.objects.filter(server=server).first()
    return [one["model_name"] for one in (row.payload.get("held", ()) if row else ())]


def one_gpu(world: Agents) -> Server:
    (server,) = servers(world, "a", gpus=1)
    return server


@pytest.fixture
def full(world: Agents) -> tuple[Server, Deployment, ModelVersion]:
    """A deployment that fills a server's only GPU, told to change its model: nothing fits beside it."""
    server = one_gpu(world)
    deployment = deploy(world, model_version=make_model_version(size_bytes=14 << 30), placement={"gpus": 1})
    world.run()
    assert state(deployment) == "ready"
    return server, deployment, make_model_version(name="newer", size_bytes=14 << 30)


def change(world: Agents, deployment: Deployment, version: ModelVersion) -> None:
    services.update_deployment(deployment, model_version=version, if_version=None, now=world.now)


def revisions_served(deployment: Deployment) -> set[int]:
    return set(deployment.instances.filter(phase="run", state="ready").values_list("revision__number", flat=True))


def test_the_old_one_serves_until_the_new_ones_model_is_there(world: Agents, full) -> None:
    server, deployment, newer = full
    tells(world, server)
    change(world, deployment, newer)
    world.run(60)
    assert revisions_served(deployment) == {1}, "nothing was stopped"
    assert held(server) == [str(newer)]
    deployment.refresh_from_db()
    assert "as soon as the model is there" in deployment.explanation
    tells(world, server, (newer, 0.5, ""))
    world.run()
    assert revisions_served(deployment) == {1}
    tells(world, server, (newer, 1.0, ""))
    world.run(20)
    assert revisions_served(deployment) == {2}
    assert held(server) == [], "its instance needs it now"


def test_what_was_fetched_ahead_is_held_until_the_new_instance_is_there(world: Agents, full) -> None:
    server, deployment, newer = full
    tells(world, server, (newer, 1.0, ""))
    change(world, deployment, newer)
    seen = []

    def look() -> None:
        row = ServerDesired.objects.get(server=server)
        wanted = {spec["model_name"] for spec in row.payload["instances"]} | set(held(server))
        seen.append(str(newer) in wanted)

    world.run(20, look)
    assert seen[-1]
    assert all(seen[seen.index(True) :]), "it was never let go of in between"


def test_a_model_that_cannot_be_fetched_ahead_does_not_hold_up_the_rollout_for_ever(world: Agents, full) -> None:
    server, deployment, newer = full
    tells(world, server, (newer, 0.0, "the disk is too full"))
    change(world, deployment, newer)
    world.run(20)
    assert revisions_served(deployment) == {2}


def test_a_server_that_does_not_tell_is_not_waited_for(world: Agents, full) -> None:
    _, deployment, newer = full
    change(world, deployment, newer)
    world.run(20)
    assert revisions_served(deployment) == {2}


def test_pins_are_in_the_desired_state_of_their_servers_and_leave_it(world: Agents) -> None:
    first, second = servers(world, "a", "b")
    one, everywhere = make_model_version(name="one"), make_model_version(name="everywhere")
    pins.pin(one, first)
    pins.pin(everywhere, None)
    world.controller.step(world.now)
    assert sorted(held(first)) == sorted([str(one), str(everywhere)])
    assert held(second) == [str(everywhere)]
    (third,) = servers(world, "c")
    pins.unpin(one, first)
    world.controller.step(world.now)
    assert held(first) == held(third) == [str(everywhere)]
    everywhere.delete()
    world.controller.step(world.now)
    assert held(first) == held(second) == []


def test_the_rules_for_a_servers_files_are_told_to_it(world: Agents) -> None:
    (server,) = servers(world, "a")
    Server.objects.filter(pk=server.pk).update(cache_quota_bytes=10**12, keep_versions=2)
    world.controller.step(world.now)
    desired = ServerDesired.objects.get(server=server)
    assert desired.payload["cache"]["quota_bytes"] == 10**12
    assert desired.payload["cache"]["keep_versions"] == 2
    world.controller.step(world.now)
    assert ServerDesired.objects.get(server=server).generation == desired.generation


@pytest.mark.parametrize(("days", "seconds"), [(30, 30 * 86400), (0, None), (-1, None)])
def test_servers_are_told_how_often_to_read_their_files(
    world: Agents, settings: Settings, days: float, seconds: float | None
) -> None:
    settings.SCRUB_EVERY_DAYS, settings.SCRUB_BYTES_PER_SECOND = days, 10**6
    (server,) = servers(world, "a")
    world.controller.step(world.now)
    told = ServerDesired.objects.get(server=server).payload["cache"]
    assert (told["scrub_every_s"], told["scrub_bytes_per_second"]) == (seconds, 10**6)
