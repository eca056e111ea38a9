"""Routes of the gateways: public name to ready instances."""

from __future__ import annotations

import pytest
from django.utils import timezone

from deployments import services
from deployments.models import Instance, Phase
from fleet.services import mark_lost, revoke_server
from tests.factories import make_deployment, make_instance, make_server
from wire.feed import FeedRoute

pytestmark = pytest.mark.django_db
NOW = timezone.now()


def only() -> FeedRoute:
    (route,) = services.feed_routes()
    return route


def test_a_ready_instance_is_a_target_with_the_way_to_it() -> None:
    server = make_server(name="a", now=NOW)
    instance = make_instance(deployment=make_deployment(name="chat"), server=server, now=NOW)
    route = only()
    assert (route.id, route.reason, route.max_context_tokens, "embeddings" in route.endpoints) == (
        "chat",
        "",
        4096,
        False,
    )
    (target,) = route.targets
    assert (target.instance_id, target.server_id, target.port) == (instance.pk, server.pk, 40_000)
    assert (target.relay_addresses, target.relay_port) == (("10.0.0.1",), 9443)
    assert target.host_id == server.state.facts["host_id"]
    assert target.engine_model == "chat"


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "starting"},
        {"state": "unhealthy"},
        {"phase": Phase.DRAIN},
        {"phase": Phase.STOP},
        {"phase": Phase.ENDED},
        {"port": 0},
    ],
)
def test_what_does_not_serve_is_no_target(fields: dict) -> None:
    make_instance(server=make_server(now=NOW), now=NOW, **fields)
    assert only().targets == ()


def test_a_model_without_a_target_says_why() -> None:
    deployment = make_deployment(name="chat")
    make_instance(deployment=deployment, server=make_server(name="a", now=NOW), now=NOW, state="starting")
    assert only().reason == "starting: starting on a"
    Instance.objects.all().delete()
    assert only().reason == "starting: waiting for the controller to place it"


def test_a_stopped_deployment_has_no_target_at_once_and_a_deleted_one_no_route() -> None:
    instance = make_instance(server=make_server(now=NOW), now=NOW)
    services.stop(instance.deployment, now=NOW)
    assert only().targets == ()
    assert only().reason.startswith("stopping: being stopped")
    services.delete(instance.deployment, now=NOW)
    assert services.feed_routes() == ()


def test_a_revoked_server_is_out_of_every_route() -> None:
    server = make_server(now=NOW)
    make_instance(server=server, now=NOW)
    revoke_server(server, NOW)
    assert only().targets == ()


def test_a_lost_server_is_a_target_only_while_nothing_else_serves() -> None:
    lost, sound = make_server(now=NOW), make_server(now=NOW)
    deployment = make_deployment()
    doubtful = make_instance(deployment=deployment, server=lost, now=NOW)
    mark_lost([lost.pk], NOW)
    assert [target.instance_id for target in only().targets] == [doubtful.pk]
    certain = make_instance(deployment=deployment, server=sound, now=NOW)
    assert [target.instance_id for target in only().targets] == [certain.pk]


def test_an_embedding_deployment_says_so() -> None:
    make_deployment(parameters={"embeddings": True, "context_tokens": 512})
    assert ("embeddings" in only().endpoints, only().max_context_tokens) == (True, 512)


def test_routes_cost_the_same_however_many(django_assert_num_queries) -> None:
    for number in range(3):
        make_instance(deployment=make_deployment(name=f"chat-{number}"), server=make_server(now=NOW), now=NOW)
        make_deployment(name=f"idle-{number}")
    with django_assert_num_queries(6):
        routes = services.feed_routes()
    assert [route.id for route in routes] == ["chat-0", "chat-1", "chat-2", "idle-0", "idle-1", "idle-2"]
