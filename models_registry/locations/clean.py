"""Removing what no version needs, location by location. One that cannot be reached is left as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import structlog

from models_registry.errors import LocationReadOnly, LocationUnreachable
from models_registry.location_models import UNDER_WAY, StorageJob, StorageLocation
from models_registry.locations.places import builtin, writable
from models_registry.locations.room import stored_copies
from models_registry.models import ModelVersion
from models_registry.store import Store

log = structlog.get_logger(__name__)


def clean_all() -> int:
    """Bytes freed in all locations that are there and may be written."""
    builtin()
    return sum(clean_location(row) for row in StorageLocation.objects.filter(reachable=True))


def clean_location(location: StorageLocation) -> int:
    """Bytes freed; 0 when it is read-only or cannot be reached."""
    try:
        store = writable(location)
    except (LocationReadOnly, LocationUnreachable):
        log.warning("location.not_cleaned", location=location.name)
        return 0
    if not store.root.is_dir():
        return 0
    clean_leftovers(store)
    with store.lock():
        manifests = dict(_manifests(location))
        blobs = {file["sha256"] for manifest in manifests.values() for file in manifest.get("files", ())}
        return store.delete_unreferenced(manifests, blobs)


def _manifests(location: StorageLocation) -> Iterator[tuple[str, dict]]:
    yield from stored_copies(location).exclude(version__digest="").values_list("version__digest", "version__manifest")
    if location.builtin:  # what the previous release took in has no copies noted yet
        rows = ModelVersion.objects.filter(copies__isnull=True).exclude(digest="")
        yield from rows.values_list("digest", "manifest")


def clean_all_leftovers() -> None:
    """What interrupted imports and copies left, everywhere."""
    builtin()
    for row in StorageLocation.objects.filter(reachable=True):
        try:
            store = writable(row)
        except (LocationReadOnly, LocationUnreachable):
            continue
        clean_leftovers(store)


def clean_leftovers(store: Store) -> None:
    """What interrupted imports and copies left in one store."""
    store.clean_leftovers()
    folders = list(arrivals(store).glob("*"))  # before the rows: a job has its row first, then its folder
    under_way = {str(pk) for pk in StorageJob.objects.filter(state__in=UNDER_WAY).values_list("pk", flat=True)}
    for folder in folders:
        if folder.name not in under_way:
            shutil.rmtree(folder, ignore_errors=True)


def arrivals(store: Store) -> Path:
    """Where files from other locations arrive: a folder for each job."""
    return store.root / "arrivals"
