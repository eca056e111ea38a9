"""The controller over real rows: places, rolls, drains, ends; one leader at a time."""

from __future__ import annotations

import pytest
from django.utils import timezone

from deployments import services
from deployments.models import Deployment, Event
from fleet.models import ServerDesired
from tests.deployments.agents import Agents
from tests.factories import make_model_version, make_server

pytestmark = pytest.mark.django_db


@pytest.fixture
def world() -> Agents:
    return Agents(timezone.now())


def deploy(world: Agents, **fields) -> Deployment:
    fields = {"name": "chat", "model_version": make_model_version(), "now": world.now} | fields
    return services.create_deployment(**fields)


def test_a_deployment_becomes_ready_and_routable(world: Agents) -> None:
    make_server(name="a", now=world.now)
    deployment = deploy(world)
    world.run()
    assert services.status_of(deployment).state == "ready"
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
