"""What agents report becomes rows, and its transitions become events with cause and remedy."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from django.utils import timezone

from deployments.models import Event, Instance, Phase
from deployments.observe import record_observed
from tests.deployments.agents import CRASH
from tests.factories import make_instance, make_server
from wire.engine import RuntimeKind
from wire.messages import InstanceState, LastExit, Observed, ObservedInstance

pytestmark = pytest.mark.django_db
NOW = timezone.now()


@pytest.fixture
def instance() -> Instance:
    return make_instance(server=make_server(name="a", now=NOW), ready=False, now=NOW)


def report(instance: Instance, now: dt.datetime = NOW, server_id: str | None = None, **fields) -> int:
    values = {"instance_id": instance.pk, "spec_hash": "x", "state": InstanceState.READY, "port": 40_000} | fields
    changed = record_observed(
        server_id or instance.server_id, Observed(generation=1, instances=(ObservedInstance(**values),)), now
    )
    instance.refresh_from_db()
    return changed


def exit_of(attempt: int, **fields) -> LastExit:
    return msgspec.structs.replace(CRASH, attempt=attempt, at=1000.0 + attempt, **fields)


def events() -> list[str]:
    return list(Event.objects.order_by("id").values_list("kind", flat=True))


def test_what_is_seen_is_taken_over(instance: Instance) -> None:
    report(
        instance,
        since=NOW.timestamp() - 5,
        runtime=RuntimeKind.PROCESS,
        unit_id="4711",
        restarts=2,
        memory_bytes=300 << 20,
        progress=1.0,
    )
    assert (instance.state, instance.port, instance.runtime, instance.unit_id) == ("ready", 40_000, "process", "4711")
    assert (instance.restarts, instance.used_memory_bytes, instance.progress) == (2, 300 << 20, 1.0)
    assert instance.state_since == dt.datetime.fromtimestamp(NOW.timestamp() - 5, dt.UTC)
    assert instance.observed_at == NOW


def test_another_engine_in_the_same_state_is_in_it_since_its_own_start(instance: Instance) -> None:
    report(instance, since=NOW.timestamp() - 500, unit_id="1")
    report(instance, since=NOW.timestamp() - 5, unit_id="1")
    assert instance.state_since == dt.datetime.fromtimestamp(NOW.timestamp() - 500, dt.UTC)
    report(instance, since=NOW.timestamp() - 2, unit_id="2")
    assert instance.state_since == dt.datetime.fromtimestamp(NOW.timestamp() - 2, dt.UTC)


def test_becoming_ready_is_told_once(instance: Instance) -> None:
    assert report(instance) == 1
    assert report(instance, now=NOW + dt.timedelta(seconds=5)) == 0
    assert events() == ["instance.ready"]
    assert Event.objects.get().server_id == instance.server_id


def test_a_heartbeat_with_nothing_new_costs_one_query(instance: Instance, django_assert_num_queries) -> None:
    report(instance)
    unit = ObservedInstance(instance_id=instance.pk, spec_hash="x", state=InstanceState.READY, port=40_000)
    with django_assert_num_queries(3):  # the query, between savepoint and release
        record_observed(instance.server_id, Observed(generation=1, instances=(unit,)), NOW)


def test_small_changes_of_memory_are_not_written(instance: Instance) -> None:
    report(instance, memory_bytes=100 << 20)
    assert report(instance, memory_bytes=110 << 20) == 0
    assert report(instance, memory_bytes=120 << 20) == 1


def test_a_crash_is_told_with_exit_code_last_lines_command_cause_and_remedy(instance: Instance) -> None:
    report(instance, state=InstanceState.BACKOFF, exits=(exit_of(1),), restarts=1, port=0)
    event = Event.objects.get()
    assert event.kind == "instance.crashed"
    assert event.severity == "error"
    name = instance.deployment.name
    assert event.message == f"{name} on a ended with exit code 1 after 0 s (attempt 1): {CRASH.cause}"
    assert event.remedy == CRASH.remedy
    assert event.details["lines"] == list(CRASH.lines)
    assert event.details["command"] == list(CRASH.command)
    assert event.instance_id == instance.pk


def test_each_attempt_is_told_once(instance: Instance) -> None:
    report(instance, state=InstanceState.BACKOFF, exits=(exit_of(1),))
    report(instance, state=InstanceState.STARTING, exits=(exit_of(1),))
    report(instance, state=InstanceState.BACKOFF, exits=(exit_of(1), exit_of(2, exit_code=None)))
    assert events() == ["instance.crashed", "instance.crashed"]
    assert "ended unseen" in Event.objects.order_by("-id")[0].message


def test_exits_are_kept_over_restarts_also_when_the_agent_forgot_them(instance: Instance) -> None:
    report(instance, state=InstanceState.BACKOFF, exits=(exit_of(1), exit_of(2)))
    report(instance, state=InstanceState.READY, exits=())
    assert [exit["attempt"] for exit in instance.exits] == [1, 2]
    report(instance, state=InstanceState.BACKOFF, exits=tuple(exit_of(number) for number in (3, 4, 5, 6)))
    assert [exit["attempt"] for exit in instance.exits] == [2, 3, 4, 5, 6]
    assert events().count("instance.crashed") == 6


def test_failed_and_unhealthy_are_told_with_the_reason(instance: Instance) -> None:
    report(instance)
    report(instance, state=InstanceState.UNHEALTHY, reason="no answer for 10 s")
    report(instance, state=InstanceState.FAILED, reason="the program is missing", port=0)
    assert events() == ["instance.ready", "instance.unhealthy", "instance.failed"]
    unhealthy, failed = Event.objects.order_by("id")[1:]
    assert unhealthy.message.endswith("does not answer its check: no answer for 10 s.")
    assert failed.message.endswith("cannot run on a: the program is missing.")
    assert failed.remedy


def test_what_is_unknown_ended_or_anothers_is_ignored(instance: Instance) -> None:
    assert report(instance, server_id=make_server(now=NOW).pk) == 0
    Instance.objects.filter(pk=instance.pk).update(phase=Phase.ENDED)
    assert report(instance) == 0
    assert record_observed(instance.server_id, Observed(generation=1, instances=()), NOW) == 0
    assert instance.state == "pending"
    assert events() == []


def test_the_end_of_one_that_was_told_to_stop_is_no_crash(instance: Instance) -> None:
    Instance.objects.filter(pk=instance.pk).update(phase=Phase.STOP)
    report(instance, state=InstanceState.STOPPED, exits=(exit_of(1),), port=0)
    assert events() == []
