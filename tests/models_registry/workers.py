"""Workers that a test runs itself, and what can be seen of them."""

from __future__ import annotations

import threading

import msgspec
from django.db import connection
from django.utils import timezone

from models_registry import services
from models_registry.models import ImportJob, ModelVersion, VersionState


def work(row: ModelVersion) -> VersionState | None:
    """Do one import here and now."""
    state = services.finish_import(row.pk, timezone.now())
    row.refresh_from_db()
    return state


def fetched(row: ModelVersion) -> int:
    """Bytes that are there, as the row tells it."""
    job = ImportJob.objects.filter(pk=row.pk).first()
    return 0 if job is None else int(job.detail.get("done_bytes", 0))


def noted() -> int:
    """Bytes that outlast a kill, synced and journalled: a slow disk can be seconds behind what has come."""
    journals = [msgspec.json.decode(path.read_bytes()) for path in services.store().downloads.glob("*.part.json")]
    return sum(end - start for journal in journals for start, end in journal["spans"])


class Worker(threading.Thread):
    """Takes one task, as a worker of Celery does."""

    def __init__(self, row: ModelVersion) -> None:
        super().__init__()
        self._row = row
        self.state: VersionState | None = None

    def run(self) -> None:
        try:
            self.state = services.work_on(self._row.pk, timezone.now())
        finally:
            connection.close()
