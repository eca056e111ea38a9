"""What is done by the clock."""

from __future__ import annotations

import datetime as dt

import structlog
from celery import shared_task
from celery.schedules import crontab
from django.utils import timezone

from apikeys import usage, warnings

log = structlog.get_logger(__name__)
KEEP_BATCHES = dt.timedelta(days=30)


@shared_task(name="apikeys.delete_old_batches", ignore_result=True)
def delete_old_batches() -> None:
    deleted = usage.delete_old_batches(timezone.now() - KEEP_BATCHES)
    log.info("usage.batches_deleted", count=deleted)


@shared_task(name="apikeys.warn_of_quotas", ignore_result=True)
def warn_of_quotas() -> None:
    warnings.warn(timezone.now())


BEAT = {
    "usage-delete-old-batches": {"task": "apikeys.delete_old_batches", "schedule": crontab(hour=3, minute=20)},
    "quota-warnings": {"task": "apikeys.warn_of_quotas", "schedule": 20.0},
}
"""Entries for CELERY_BEAT_SCHEDULE."""
