"""The status of a deployment follows from its instances and the age of what was seen."""

from __future__ import annotations

import pytest
from django.utils import timezone

from deployments import services
from deployments.models import Deployment, Instance, Phase, Revision
from fleet.services import mark_lost, revoke_server
from tests.factories import make_deployment, make_instance, make_server

pytestmark = pytest.mark.django_db
NOW = timezone.now()


def status(deployment: Deployment) -> tuple[str, int, int]:
    deployment.refresh_from_db()
    found = services.status_of(deployment)
    return found.state.value, found.ready, found.desired


def reason(deployment: Deployment) -> str:
    deployment.refresh_from_db()
    return services.status_of(deployment).reason


def instance(deployment: Deployment, name: str = "a", *, rejected: str = "", **fields) -> Instance:
    server = make_server(name=name, now=NOW, state={"rejected": rejected})
    return make_instance(deployment=deployment, server=server, now=NOW, **fields)


def test_nothing_placed_yet_is_starting() -> None:
    deployment = make_deployment()
    assert status(deployment) == ("starting", 0, 1)
    assert reason(deployment) == "waiting for the controller to place it"


def test_all_ready_is_ready_and_some_are_degraded() -> None:
    deployment = make_deployment(replicas=2)
    instance(deployment)
    instance(deployment, "b", state="fetching", reason="40 %")
    assert status(deployment) == ("degraded", 1, 2)
    assert reason(deployment) == "fetching on b: 40 %"
    deployment.instances.update(state="ready")
    assert status(deployment) == ("ready", 2, 2)
    assert reason(deployment) == ""


def test_an_instance_that_starts_is_starting_and_one_that_keeps_dying_has_failed() -> None:
    deployment = make_deployment()
    one = instance(deployment, ready=False)
    assert status(deployment) == ("starting", 0, 1)
    one.state, one.reason = "backoff", "exit code 1"
    one.save()
    assert status(deployment) == ("failed", 0, 1)
    assert reason(deployment) == "backoff on a: exit code 1"


def test_what_a_lost_or_revoked_server_said_last_is_not_believed() -> None:
    deployment = make_deployment(replicas=2)
    lost, revoked = instance(deployment), instance(deployment, "b")
    mark_lost([lost.server_id], NOW)
    assert status(deployment) == ("degraded", 1, 2)
    assert reason(deployment) == "a is lost"
    revoke_server(revoked.server, NOW)
    assert status(deployment) == ("failed", 0, 2)


def test_an_older_revision_beside_it_is_updating() -> None:
    deployment = make_deployment()
    instance(deployment)
    deployment.revision = Revision.objects.create(
        deployment=deployment, number=2, model_version=deployment.revision.model_version, engine="llamacpp"
    )
    deployment.save()
    instance(deployment, "b", ready=False)
    assert status(deployment) == ("updating", 1, 1)
    assert reason(deployment) == "pending on b"


def test_what_fits_nowhere_is_unplaceable_with_the_reason() -> None:
    deployment = make_deployment(explanation="Fits on none", refusals={"a": "cordoned"})
    assert status(deployment) == ("unplaceable", 0, 1)
    assert reason(deployment) == "Fits on none"


def test_without_any_server_it_is_unplaceable_too() -> None:
    deployment = make_deployment(explanation="There is no server")
    assert status(deployment) == ("unplaceable", 0, 1)


def test_making_room_for_itself_is_not_unplaceable() -> None:
    deployment = make_deployment(explanation="Waiting for the room that an instance on its way out still holds")
    instance(deployment, phase=Phase.DRAIN)
    assert status(deployment) == ("starting", 0, 1)


def test_a_stopped_one_is_stopping_until_its_last_instance_has_ended() -> None:
    deployment = make_deployment(running=False)
    one = instance(deployment, phase=Phase.DRAIN)
    assert status(deployment) == ("stopping", 0, 0)
    assert reason(deployment) == "being stopped: 1 left on a"
    one.phase = Phase.ENDED
    one.save()
    assert status(deployment) == ("stopped", 0, 0)


def test_a_server_that_refuses_its_desired_state_is_named() -> None:
    deployment = make_deployment()
    one = instance(deployment, rejected="bad signature", ready=False)
    assert reason(deployment) == "a refuses its desired state: bad signature"
    deployment.running, one.phase = False, Phase.STOP
    deployment.save()
    one.save()
    assert reason(deployment) == "being stopped: 1 left on a; a refuses its desired state: bad signature"


def test_zero_replicas_are_stopped_and_say_so() -> None:
    deployment = make_deployment(replicas=0)
    assert status(deployment) == ("stopped", 0, 0)
    assert reason(deployment) == "it has 0 replicas"


def test_statuses_of_many_cost_one_query(django_assert_num_queries) -> None:
    rows = [make_deployment() for _ in range(5)]
    for number, row in enumerate(rows):
        instance(row, f"s{number}")
    with django_assert_num_queries(1):
        found = services.statuses(rows)
    assert {one.state.value for one in found.values()} == {"ready"}
