"""Retention: old events and ended instances go, all else stays."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone

from config.celery import beat_schedule
from deployments import tasks
from deployments.models import Event, Instance, Phase
from tests.factories import make_instance

pytestmark = pytest.mark.django_db
NOW = timezone.now()


def ended(days_ago: float) -> Instance:
    return make_instance(now=NOW, phase=Phase.ENDED, ended_at=NOW - dt.timedelta(days=days_ago))


def test_old_events_and_ended_instances_go_and_their_events_stay() -> None:
    old, young, live = ended(31), ended(29), make_instance(now=NOW)
    for days, kind in ((91, "old"), (89, "young")):
        Event.objects.create(at=NOW - dt.timedelta(days=days), kind=kind, message="x", instance=old)
    assert tasks.forget_history() == 2
    assert set(Instance.objects.values_list("pk", flat=True)) == {young.pk, live.pk}
    assert list(Event.objects.values_list("kind", "instance")) == [("young", None)]


def test_it_works_in_batches_until_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_BATCH", 2)
    Event.objects.bulk_create(Event(at=NOW - dt.timedelta(days=100), kind="x", message="x") for _ in range(5))
    assert tasks.forget_history() == 5
    assert not Event.objects.exists()


def test_it_is_planned_once_a_day() -> None:
    (entry,) = (one for one in beat_schedule().values() if one["task"] == tasks.forget_history.name)
    assert entry["schedule"].hour == {3}
