"""Whether something still goes into a location: its quota, and its disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator

from django.db.models import QuerySet

from models_registry.errors import NoSpace, QuotaExceeded
from models_registry.location_models import StorageLocation, VersionCopy
from models_registry.locations.places import default, writable
from models_registry.store import SPARE_BYTES, Store
from wire.manifest import ManifestFile


def choose(location: StorageLocation | None, needed_bytes: int = 0) -> StorageLocation:
    """Where an import goes: the one that was asked for, else the default.

    Raises LocationReadOnly, LocationUnreachable, QuotaExceeded. Its disk is looked at when the files come.
    """
    chosen = location or default()
    writable(chosen)
    check_quota(chosen, needed_bytes)
    return chosen


def check_quota(location: StorageLocation, more_bytes: int) -> None:
    """Raises QuotaExceeded when `more_bytes` of new files would be too many."""
    if location.quota_bytes is None or not more_bytes:
        return
    used_bytes = used_of(location)
    if used_bytes + more_bytes > location.quota_bytes:
        raise QuotaExceeded(
            f"{_gigabytes(more_bytes)} more do not go into {location}:"
            f" {_gigabytes(used_bytes)} of its {_gigabytes(location.quota_bytes)} are used."
        )


def check_files(location: StorageLocation, files: Iterable[ManifestFile]) -> None:
    """Raises QuotaExceeded when those of the files that it does not have yet would be too many."""
    if location.quota_bytes is not None:
        check_quota(location, new_bytes(location, files))


def check_disk(location: StorageLocation, store: Store, more_bytes: int) -> None:
    """Raises NoSpace when the disk has not that many bytes, and some to spare."""
    free_bytes = shutil.disk_usage(location.root).free
    if more_bytes and more_bytes + SPARE_BYTES > free_bytes:
        raise NoSpace(
            f"{_gigabytes(more_bytes)} (and {_gigabytes(SPARE_BYTES)} to spare) are needed in {location},"
            f" but only {_gigabytes(free_bytes)} are free in {store.root}."
        )


def used_of(location: StorageLocation) -> int:
    """Bytes of the files that are ours in it, each counted once."""
    return sum(blobs_of(stored_copies(location)).values())


def new_bytes(location: StorageLocation, files: Iterable[ManifestFile]) -> int:
    """Bytes of those files that no copy in this location has yet, each counted once."""
    have = blobs_of(stored_copies(location))
    return sum({file.sha256: file.size_bytes for file in files if file.sha256 not in have}.values())


def stored_copies(location: StorageLocation) -> QuerySet[VersionCopy]:
    """Copies in our own store there, not those in place."""
    return VersionCopy.objects.filter(location=location, in_place=False)


def blobs_of(copies: QuerySet[VersionCopy]) -> dict[str, int]:
    """sha256 -> bytes."""
    return {file["sha256"]: file["size_bytes"] for file in _files_of(copies)}


def _files_of(copies: QuerySet[VersionCopy]) -> Iterator[dict]:
    for manifest in copies.order_by().values_list("version__manifest", flat=True).iterator():
        yield from (manifest or {}).get("files", ())


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
