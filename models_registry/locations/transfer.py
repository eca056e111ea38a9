"""A version from one location to another: copied, hashed on arrival, synced, then recorded.

Files arrive in a folder of the job's own; what is there stays when the process dies, and the next one goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import structlog
from django.db import InterfaceError, OperationalError, transaction

from models_registry.errors import CopyDamaged, NotReady
from models_registry.location_models import CopyState, StorageJob, VersionCopy
from models_registry.locations import copies, room
from models_registry.locations.clean import arrivals, clean_location
from models_registry.locations.places import writable
from models_registry.locations.sources import Note, fetch_local, paths_of
from models_registry.models import ModelVersion, VersionState
from models_registry.store import Store, matches
from wire.manifest import ManifestFile

log = structlog.get_logger(__name__)


def copy_version(job: StorageJob, note: Note, still_wanted: Callable[[], None]) -> None:
    """Make `job.location` have a whole copy. Doing it again, after any end of it, is harmless.

    `still_wanted` raises when it is not. Raises NoSpace, QuotaExceeded, LocationReadOnly, LocationUnreachable,
    CopyDamaged, NotReady; then the location is as it was.
    """
    version, location = job.version, job.location
    if VersionCopy.objects.filter(version=version, location=location, state=CopyState.WHOLE).exists():
        return
    store, manifest = writable(location), copies.manifest_of(version)
    folder = arrivals(store) / str(job.pk)
    more_bytes = room.new_bytes(location, manifest.files)
    room.check_quota(location, more_bytes)
    room.check_disk(location, store, max(0, more_bytes - _bytes_below(folder)))
    try:
        places = [(file, _arrived(job, store, file, folder / file.sha256, note)) for file in manifest.files]
        with store.stage_files(places) as staged, store.lock():
            still_wanted()
            copies.place(location, staged, replace={path.name for _, path in places if path.parent == folder})
            copies.sync(store, manifest)
            with transaction.atomic():  # short: the disk was waited for before
                still_wanted()
                rows = ModelVersion.objects.select_for_update().filter(pk=version.pk, state=VersionState.READY)
                if not rows.exists():
                    raise NotReady(f"{version} was deleted meanwhile.")
                copies.note(version, location, staged)
    except (OperationalError, InterfaceError):  # of the database: what arrived is kept for the next try
        raise
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        clean_location(location)  # of what is in its place, and recorded nowhere
        raise
    shutil.rmtree(folder, ignore_errors=True)
    log.info("copy.made", version=str(version), location=location.name, size_bytes=version.size_bytes)


def _arrived(job: StorageJob, store: Store, file: ManifestFile, place: Path, note: Note) -> Path:
    """Where the file is, whole, on the disk of the new location. Raises CopyDamaged, NoSpace."""
    there = store.blob_path(file.sha256)
    if matches(there, file):  # of another version
        note(file.size_bytes)
        return there
    for path in paths_of(job.version, file, prefer=job.source):
        if path != there and fetch_local(path, file, place, note):
            return place
    raise CopyDamaged(f"{file.path} of {job.version} is nowhere as it should be.")


def _bytes_below(folder: Path) -> int:
    """Bytes on disk that arrived already, or are reserved."""
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*") if path.is_file())
