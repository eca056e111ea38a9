"""The verbs: what each changes, tells and refuses."""

from __future__ import annotations

import datetime as dt
import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deployments import services
from deployments.engines.base import BadParameters, UnknownEngine, UnsuitableModel
from deployments.errors import (
    BeingDeleted,
    InvalidSpec,
    ModelNotReady,
    NameInUse,
    NotRunning,
    UnknownRevision,
    VersionConflict,
)
from deployments.models import Deployment, Event, Revision
from fleet.models import Availability
from fleet.services import set_availability
from models_registry.models import Format, VersionState
from tests.factories import make_facts, make_model_version, make_server

NOW = timezone.now()


def create(**fields) -> Deployment:
    values = {"name": "chat", "now": NOW, "actor": "ada"} | fields
    if "model_version" not in values:
        values["model_version"] = make_model_version(name="smol")
    return services.create_deployment(**values)


def last_event() -> Event:
    event = Event.objects.order_by("-id").first()
    assert event is not None
    return event


# ------------------------------------------------------------------------------------------------ create


@pytest.mark.django_db
def test_a_new_deployment_has_its_first_revision_and_tells_who_made_it() -> None:
    deployment = create(parameters={"parallel": 2}, placement={"labels": {"rack": "b2"}, "servers": []}, replicas=3)
    revision = deployment.revision
    assert (revision.number, revision.created_by, revision.parameters) == (1, "ada", {"parallel": 2})
    assert revision.placement == {"labels": {"rack": "b2"}}
    assert (deployment.version, deployment.replicas, deployment.running) == (1, 3, True)
    event = last_event()
    assert event.kind == "deployment.created"
    assert event.message == f"chat was created with {revision.model_version}, 3 replicas by ada."
    assert event.deployment == deployment


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "-chat"}, "name"),
        ({"name": "chat bot"}, "name"),
        ({"name": "chat\n"}, "name"),
        ({"name": "x" * 121}, "name"),
        ({"name": None}, "name"),
        ({"replicas": -1}, "replicas"),
        ({"replicas": 1001}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"replicas": "2"}, "replicas"),
        ({"engine": "vlm"}, "engine"),
        ({"runtime": "podman"}, "runtime"),
        ({"image": "bad image; rm"}, "image"),
        ({"placement": {"rack": "b2"}}, "placement"),
        ({"placement": {"gpus": -1}}, "placement"),
        ({"placement": {"gpus": 65}}, "placement"),
        ({"placement": {"gpus": True}}, "placement"),
        ({"placement": {"labels": {"rack": 2}}}, "placement"),
        ({"placement": {"servers": "a"}}, "placement"),
        ({"placement": [1]}, "placement"),
        ({"parameters": [1]}, "parameters"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_made(fields: dict, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        create(**fields)
    assert set(caught.value.details["errors"]) == {field}
    assert not Deployment.objects.exists()
    assert not Event.objects.exists()


@pytest.mark.django_db
def test_wrong_parameters_are_named_and_nothing_is_made() -> None:
    with pytest.raises(BadParameters):
        create(parameters={"parallel": 0})
    assert not Deployment.objects.exists()


@pytest.mark.django_db
def test_a_model_that_is_not_ready_or_not_suitable_is_refused() -> None:
    with pytest.raises(ModelNotReady, match="not ready"):
        create(model_version=make_model_version(state=VersionState.IMPORTING))
    with pytest.raises(UnsuitableModel):
        create(model_version=make_model_version(format=Format.SAFETENSORS))
    assert not Deployment.objects.exists()


@pytest.mark.django_db
def test_a_name_in_use_is_refused_and_free_again_once_deleted() -> None:
    first = create()
    with pytest.raises(NameInUse):
        create()
    services.delete(first, now=NOW)
    assert create().pk != first.pk


# ------------------------------------------------------------------------------------------------ change


@pytest.mark.django_db
def test_a_changed_spec_becomes_a_new_revision_and_the_version_rises() -> None:
    deployment = create(parameters={"parallel": 2})
    changed = services.update_deployment(
        deployment, if_version=1, now=NOW, actor="eve", parameters={"parallel": 3}, replicas=2
    )
    assert (changed.version, changed.replicas, changed.revision.number) == (2, 2, 2)
    assert changed.revision.parameters == {"parallel": 3}
    assert deployment.revisions.get(number=1).parameters == {"parallel": 2}
    message = f"chat was changed by eve: revision 2 with {changed.revision.model_version}, 1 -> 2 replicas."
    assert last_event().message == message


@pytest.mark.django_db
def test_a_change_that_changes_nothing_writes_nothing() -> None:
    deployment = create(parameters={"parallel": 2}, description="mine")
    events = Event.objects.count()
    same = services.update_deployment(
        deployment, if_version=1, now=NOW, parameters={"parallel": 2}, replicas=1, description="mine", running=True
    )
    assert (same.version, Revision.objects.count(), Event.objects.count()) == (1, 1, events)


@pytest.mark.django_db
def test_a_plain_change_makes_no_revision() -> None:
    changed = services.update_deployment(create(), if_version=None, now=NOW, description="ours")
    assert (changed.version, changed.description, changed.revision.number) == (2, "ours", 1)


@pytest.mark.django_db
def test_a_change_of_an_older_version_is_refused_whole() -> None:
    deployment = create()
    services.scale(deployment, 2, now=NOW)
    with pytest.raises(VersionConflict) as caught:
        services.update_deployment(deployment, if_version=1, now=NOW, parameters={"parallel": 3})
    assert caught.value.details == {"current_version": 2}
    assert Revision.objects.count() == 1


@pytest.mark.django_db
def test_what_cannot_be_changed_is_named() -> None:
    deployment = create()
    with pytest.raises(InvalidSpec, match="name: cannot be changed"):
        services.update_deployment(deployment, if_version=None, now=NOW, name="other")
    for fields in ({"replicas": -1}, {"runtime": "podman"}, {"engine": "vlm"}):
        with pytest.raises((InvalidSpec, UnknownEngine)):
            services.update_deployment(deployment, if_version=None, now=NOW, **fields)
    deployment.refresh_from_db()
    assert deployment.version == 1


@pytest.mark.django_db
def test_stop_keeps_the_replicas_for_the_next_start() -> None:
    deployment = create(replicas=3)
    stopped = services.stop(deployment, now=NOW, actor="eve")
    assert (stopped.running, stopped.replicas) == (False, 3)
    assert last_event().message == "chat was changed by eve: stopped."
    started = services.start(deployment, now=NOW)
    assert (started.running, started.replicas, started.version) == (True, 3, 3)
    assert last_event().message == "chat was changed: started."


@pytest.mark.django_db
def test_scaling_is_told_from_what_to_what() -> None:
    assert services.scale(create(), 4, now=NOW).replicas == 4
    assert last_event().message == "chat was changed: 1 -> 4 replicas."


@pytest.mark.django_db
def test_a_rollback_repeats_an_earlier_spec_as_a_new_revision() -> None:
    deployment = create(parameters={"parallel": 2})
    services.update_deployment(deployment, if_version=None, now=NOW, parameters={"parallel": 3}, image="mine:2")
    back = services.rollback(deployment, 1, now=NOW)
    assert (back.revision.number, back.revision.parameters, back.revision.image) == (3, {"parallel": 2}, "")
    with pytest.raises(UnknownRevision):
        services.rollback(deployment, 9, now=NOW)


@pytest.mark.django_db
def test_a_restart_is_the_same_spec_as_a_new_revision() -> None:
    deployment = create(parameters={"parallel": 2})
    again = services.restart(deployment, now=NOW, actor="ann")
    assert (again.revision.number, again.revision.parameters, again.version) == (2, {"parallel": 2}, 2)
    assert last_event().message == "chat is restarted by ann, as revision 2."
    with pytest.raises(VersionConflict):
        services.restart(deployment, now=NOW, if_version=1)
    services.stop(deployment, now=NOW)
    with pytest.raises(NotRunning):
        services.restart(deployment, now=NOW)
    with pytest.raises(CommandError, match=r"is stopped\W* Start it"):
        call_command("restart_deployment", "chat")
    with pytest.raises(CommandError, match="no deployment other"):
        call_command("restart_deployment", "chat", "other")
    services.start(deployment, now=NOW)
    call_command("restart_deployment", "chat")
    assert Revision.objects.count() == 3


@pytest.mark.django_db
def test_a_deleted_deployment_takes_no_change() -> None:
    deployment = create()
    services.delete(deployment, now=NOW, actor="eve")
    assert last_event().message == "chat is being deleted by eve."
    for change in (services.start, services.stop, services.delete):
        with pytest.raises(BeingDeleted):
            change(deployment, now=NOW)
    deployment.refresh_from_db()
    assert deployment.deleted_at == NOW
    assert not deployment.running


@pytest.mark.django_db(transaction=True)
def test_changes_at_the_same_time_come_one_after_the_other() -> None:
    deployment = create()
    start = threading.Barrier(4, timeout=20)
    failures: list[Exception] = []

    def change(parallel: int) -> None:
        try:
            start.wait()
            services.update_deployment(deployment, if_version=None, now=NOW, parameters={"parallel": parallel})
        except Exception as error:
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=change, args=(number,)) for number in (5, 6, 7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not failures
    deployment.refresh_from_db()
    assert deployment.version == 5
    assert sorted(deployment.revisions.values_list("number", flat=True)) == [1, 2, 3, 4, 5]
    assert connection.is_usable()


# ------------------------------------------------------------------------------------------------ preview


@pytest.mark.django_db
def test_a_preview_never_writes() -> None:
    make_server(name="a", now=NOW)
    version = make_model_version()
    with CaptureQueriesContext(connection) as queries:
        found = services.preview(model_version=version, replicas=2, now=NOW)
    assert all(query["sql"].startswith("SELECT") for query in queries)
    assert found.placed == 2
    assert found.summary == "All 2 would be placed: 2 on a."
    assert found.servers[0].instances == 2
    assert found.max_context_tokens == 4096
    assert found.estimate.host_bytes == sum(part.host_bytes for part in found.estimate.parts)


@pytest.mark.django_db
def test_a_preview_says_for_every_server_why_not() -> None:
    make_server(name="small", now=NOW, facts=make_facts(memory_bytes=200 << 20))
    make_server(name="never-seen", online=False)
    make_server(name="old", now=NOW - dt.timedelta(minutes=5))
    set_availability(make_server(name="cordoned", now=NOW), Availability.CORDONED, NOW)
    set_availability(make_server(name="draining", now=NOW), Availability.DRAINING, NOW)
    found = services.preview(model_version=make_model_version(), now=NOW)
    reasons = {answer.server: answer.reason.split(":")[0] for answer in found.servers}
    assert reasons == {
        "small": "not enough memory",
        "never-seen": "has not connected yet",
        "old": "lost",
        "cordoned": "cordoned",
        "draining": "being drained",
    }
    assert found.placed == 0
    assert found.summary.startswith("It fits on none of 5 servers: ")


@pytest.mark.django_db
def test_a_preview_of_wrong_fields_is_refused_like_the_deployment_itself() -> None:
    with pytest.raises(BadParameters):
        services.preview(model_version=make_model_version(), parameters={"parallel": 0}, now=NOW)
    with pytest.raises(InvalidSpec):
        services.preview(model_version=make_model_version(), engine="vlm", now=NOW)
    with pytest.raises(InvalidSpec, match="replicas"):
        services.preview(model_version=make_model_version(), replicas=-1, now=NOW)
