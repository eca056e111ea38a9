"""Attempts of workers at an import: which one counts, which one is over, and when it has been enough."""

from __future__ import annotations

import datetime as dt

import structlog

from models_registry.errors import LocationUnreachable, RegistryError
from models_registry.models import ImportJob, ModelVersion, VersionState
from models_registry.versions import import_lock

log = structlog.get_logger(__name__)

QUEUED_AT_MOST = dt.timedelta(minutes=10)
"""An import that no worker took in this time is queued once more: the broker may have lost it."""
MOST = 3
"""In a row that came to nothing."""


def are_vain(job: ImportJob) -> bool:
    """Whether another attempt would be one too many."""
    return job.attempts >= MOST and not _has_moved(job)


def begin(job: ImportJob, now: dt.datetime) -> None:
    """A worker begins. One that was killed after it had fetched something was no vain attempt."""
    attempts = 1 if _has_moved(job) else job.attempts + 1
    there = job.detail.get("done_bytes", 0)
    ImportJob.objects.filter(pk=job.pk).update(attempts=attempts, started_at=now, seen_bytes=there)
    ModelVersion.objects.filter(pk=job.pk, state=VersionState.IMPORTING).exclude(error="").update(error="")


def _has_moved(job: ImportJob) -> bool:
    return int(job.detail.get("done_bytes", 0)) > job.seen_bytes


def is_orphaned(job: ImportJob, now: dt.datetime) -> bool:
    """Whether no worker has it any more, or none got it in time."""
    if job.started_at is None:
        return now - job.queued_at >= QUEUED_AT_MOST
    try:
        with import_lock(job) as mine:
            return mine
    except LocationUnreachable:
        return False  # until its disk is there again


def lost(job: ImportJob) -> RegistryError:
    return RegistryError(
        f"The worker was killed during each of {job.attempts} attempts: most likely it ran out of memory.",
        remedy="Look into the worker's log, give it more memory, then import the model again.",
    )


def wait_for_disk(job: ImportJob, error: LocationUnreachable, now: dt.datetime) -> VersionState:
    """Nothing that came is lost, and nothing is wrong with it: `heal_imports` has it tried again."""
    ImportJob.objects.filter(pk=job.pk).update(started_at=None, queued_at=now, attempts=0)
    importing = ModelVersion.objects.filter(pk=job.pk, state=VersionState.IMPORTING)
    importing.update(error=f"{error.message} The import goes on when it is there again.")
    log.warning("model.import_waits", model=str(job.version), reason=error.message)
    return VersionState.IMPORTING
