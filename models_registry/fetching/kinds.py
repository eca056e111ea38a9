"""The sources that files can be fetched from. A new one is a package with `KIND` and `items`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from django.conf import settings

from models_registry.errors import BadSource
from models_registry.fetching import work
from models_registry.hub import imports as hub
from models_registry.models import ImportJob, ModelVersion
from models_registry.urls import imports as urls
from wire.manifest import ManifestFile

_ITEMS: dict[str, Callable[[ModelVersion, ImportJob], list[work.Item]]] = {
    urls.KIND: urls.items,
}


def fetch(row: ModelVersion, job: ImportJob) -> list[tuple[ManifestFile, Path]]:
    """Every file of the job, whole and verified, with where it lies.

    Raises Parked, RegistryError, and the database's errors.
    """
    if job.hub is not None:  # the Hub is where the installation says: on this machine too
        return work.fetch(row, job, hub.items(job), loopback=True)
    kind = str((job.remote or {}).get("kind", ""))
    if kind not in _ITEMS:
        raise BadSource(f"This release knows no source of the kind {kind!r}.", remedy="Start the import again.")
    return work.fetch(row, job, _ITEMS[kind](row, job), loopback=settings.FETCH_FROM_LOOPBACK)
