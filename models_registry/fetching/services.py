"""Verbs of imports from elsewhere, whatever their source: pause, go on, slow down, put first, cancel."""

from __future__ import annotations

import structlog
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from models_registry.errors import ImportCancelled, NotReady
from models_registry.models import ImportJob, ModelVersion, VersionState
from models_registry.services import fail_import, requeue
from models_registry.versions import import_lock

log = structlog.get_logger(__name__)

MOST_PRIORITY = 100


def pause_import(row: ModelVersion, *, paused: bool = True) -> None:
    """Stop fetching within a second, with all that is there kept, and leave the worker to others; or go on.

    Raises NotReady.
    """
    with transaction.atomic():
        jobs = _jobs(row)
        if not jobs.exists():
            raise _not_fetched(row)
        if jobs.exclude(paused=paused).update(paused=paused) and not paused:
            requeue(row, timezone.now())
    log.info("model.import_paused" if paused else "model.import_resumed", model=str(row))


def limit_import(row: ModelVersion, bytes_per_second: int | None) -> None:
    """Not faster than this (None: as fast as it goes). Raises NotReady."""
    if not _jobs(row).update(limit_bytes_per_second=bytes_per_second or None):
        raise _not_fetched(row)


def prioritize_import(row: ModelVersion, priority: int) -> None:
    """Higher ones are taken up first, and have most of the line while they are fetched. 0 is usual. Raises NotReady."""
    priority = max(-MOST_PRIORITY, min(MOST_PRIORITY, priority))
    if not _jobs(row).update(priority=priority):
        raise _not_fetched(row)
    log.info("model.import_prioritized", model=str(row), priority=priority)


def cancel_import(row: ModelVersion) -> None:
    """End an import; what was fetched stays for a week, for the next one. Raises NotReady."""
    if not _jobs(row).update(cancelled=True, paused=False):
        raise _not_fetched(row)
    for job in ImportJob.objects.select_related("location").filter(pk=row.pk):
        with import_lock(job) as mine:  # else its worker sees it within a second
            if mine:
                fail_import(row, ImportCancelled("The import was cancelled."))
    log.info("model.import_cancelled", model=str(row))


def _jobs(row: ModelVersion) -> QuerySet[ImportJob]:
    return ImportJob.objects.filter(ImportJob.FETCHED, pk=row.pk, version__state=VersionState.IMPORTING)


def _not_fetched(row: ModelVersion) -> NotReady:
    return NotReady(f"{row} is not being fetched.", remedy="Look at its state: it may have ended meanwhile.")
