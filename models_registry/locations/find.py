"""Where the bytes are: a blob for whoever asks, and the folder that servers can use as it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.db import close_old_connections, connection

from models_registry.errors import LocationUnreachable
from models_registry.location_models import CopyState, InPlaceFile, LocationKind, StorageLocation, VersionCopy
from models_registry.locations.places import builtin, why_unreachable
from models_registry.models import ModelVersion, VersionState
from models_registry.store import Store

_FRESH_S = 5.0
"""How long it is taken for true which locations are there, and what in them is damaged."""


@dataclass(frozen=True)
class _Places:
    """Stores within reach, the built-in one and then the writable ones first; and (location, sha256) to stay off."""

    stores: tuple[tuple[int, Store], ...]
    bad: frozenset[tuple[int, str]]
    for_store_dir: Path
    until_s: float


_lock = threading.Lock()
_places: _Places | None = None


def find_blob(sha256: str) -> Path | None:
    """A file with this content in any location within reach, None when there is none.

    Made to be called for each request, from any thread: the rows are looked at every few seconds, else it costs a
    `stat` for each location. A copy that is known to be damaged is not used, nor a file in place that has changed.
    """
    places = _known_places()
    for pk, store in places.stores:
        path = store.blob_path(sha256)
        if (pk, sha256) not in places.bad and path.is_file():
            return path
    return _in_place(sha256, places)


def version_folder(version: ModelVersion) -> Path:
    """A folder with the files of a READY version under their own names. Raises LocationUnreachable."""
    copies = VersionCopy.objects.filter(version=version).select_related("location", "version")
    for copy in copies.order_by("-state", "pk"):  # whole ones first
        if copy.path.is_dir() and not why_unreachable(copy.location):
            return copy.path
    raise LocationUnreachable(f"No location with the files of {version} is within reach.")


def blob_or_fail(sha256: str) -> Path:
    """`find_blob`. Raises LocationUnreachable."""
    found = find_blob(sha256)
    if found is None:
        raise LocationUnreachable(f"No location within reach has the file {sha256[:12]} whole.")
    return found


def store_folders() -> tuple[Path, ...]:
    """Folders with blobs of all stores within reach, each blob at `ab/abcd...`."""
    return tuple(store.root.absolute() / "blobs" / "sha256" for _, store in _known_places().stores)


def forget_places() -> None:
    """Look at the rows again at the next call: something was changed by this process."""
    global _places
    _places = None


def _known_places() -> _Places:
    global _places
    now_s, store_dir = time.monotonic(), Path(settings.MODEL_STORE_DIR)
    found = _places
    if found is not None and found.until_s > now_s and found.for_store_dir == store_dir:
        return found
    with _lock, _tidy_connection():
        _places = found = _look(store_dir, now_s + _FRESH_S)
    return found


@contextmanager
def _tidy_connection() -> Iterator[None]:
    """The database as each request has it: the thread may be one in which no request of Django's ever ends."""
    if connection.in_atomic_block:
        yield
        return
    close_old_connections()
    is_ours = connection.connection is None
    try:
        yield
    finally:
        if is_ours:  # nobody else would close it
            connection.close()


def _look(store_dir: Path, until_s: float) -> _Places:
    """Rows only: a disk that hangs must not hold up those who ask for what is on another one."""
    rows = StorageLocation.objects.filter(reachable=True).order_by("-builtin", "read_only", "pk")
    stores = [(row.pk, Store(row.store_root)) for row in (rows or [builtin()])]
    damaged = VersionCopy.objects.exclude(state=CopyState.WHOLE).values_list("location_id", "bad")
    bad = frozenset((location, one["sha256"]) for location, files in damaged for one in files)
    return _Places(tuple(stores), bad, store_dir, until_s)


def _in_place(sha256: str, places: _Places) -> Path | None:
    """One that lies in somebody's folder, and is what it was when it was hashed."""
    with _tidy_connection():
        files = InPlaceFile.objects.filter(sha256=sha256, copy__location__reachable=True)
        for file in files.select_related("copy__location"):
            path = file.copy.location.root / file.copy.folder / file.path
            if (file.copy.location_id, sha256) not in places.bad and is_as_hashed(path, file):
                return path
    return None


def is_as_hashed(path: Path, file: InPlaceFile) -> bool:
    """Whether size, time of change and inode are those of when it was hashed."""
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns, str(status.st_ino)) == (file.size_bytes, file.mtime_ns, file.inode)


def shared_dir(version: ModelVersion) -> str:
    """The folder of a version as servers see it on shared storage, '' when it is on none.

    Servers that mount that storage use it as it is; the others pull the version's files. Whether the master reaches it
    just now does not matter: what servers run must not change with the master's network.
    """
    if version.state != VersionState.READY:
        return ""
    copies = VersionCopy.objects.filter(version=version, state=CopyState.WHOLE, location__kind=LocationKind.SHARED)
    copy = copies.select_related("location", "version").order_by("-in_place", "pk").first()
    return str(copy.seen_path) if copy else ""
