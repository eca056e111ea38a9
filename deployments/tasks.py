"""Retention: what is history goes after a while."""

from __future__ import annotations

from datetime import timedelta

import structlog
from celery import shared_task
from celery.schedules import crontab
from django.utils import timezone

from deployments.models import Event, Instance, Phase

log = structlog.get_logger(__name__)

KEEP_EVENTS = timedelta(days=90)
KEEP_ENDED_INSTANCES = timedelta(days=30)
_BATCH = 5000

BEAT = {"deployments-forget-history": {"task": "deployments.forget_history", "schedule": crontab(hour=3, minute=40)}}
"""Entries for CELERY_BEAT_SCHEDULE."""


@shared_task(name="deployments.forget_history")
def forget_history() -> int:
    """Delete old events and ended instances, in batches so that no transaction is long; how many rows."""
    now = timezone.now()
    events = _delete(Event.objects.filter(at__lt=now - KEEP_EVENTS))
    instances = _delete(Instance.objects.filter(phase=Phase.ENDED, ended_at__lt=now - KEEP_ENDED_INSTANCES))
    log.info("history.forgotten", events=events, instances=instances)
    return events + instances


def _delete(rows) -> int:
    gone = 0
    while keys := list(rows.order_by("pk").values_list("pk", flat=True)[:_BATCH]):
        rows.model.objects.filter(pk__in=keys).delete()
        gone += len(keys)
    return gone
