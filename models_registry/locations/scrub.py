"""Reading copies again: is each file still what its hash says?"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
from django.utils import timezone

from models_registry.errors import LocationUnreachable
from models_registry.location_models import CopyState, InPlaceFile, StorageJob, VersionCopy
from models_registry.locations.copies import MISSING, manifest_of, note_bad
from models_registry.locations.find import forget_places, is_as_hashed
from models_registry.locations.places import reach, why_unreachable
from models_registry.locations.sources import Note
from models_registry.signals import store_damaged
from models_registry.store import Store
from wire.manifest import ManifestFile

log = structlog.get_logger(__name__)

Read = Callable[[Path], str]
"""sha256 of a file. Raises OSError."""

_CHUNK_BYTES = 1 << 20
_TOLD_EVERY_S = 0.5
_NICENESS = 15
DIFFERS = "is not what it was"


def bad_files(copy: VersionCopy) -> list[dict[str, str]]:
    """What is wrong with a copy; reads every byte, as fast as it goes. Raises LocationUnreachable."""
    store, files = reach(copy.location), manifest_of(copy.version).files
    return [found for file in files if (found := check_file(copy, store, file, sha256_of))]


def verify_now(copy: VersionCopy, now: dt.datetime) -> list[dict[str, str]]:
    """`bad_files`, noted."""
    bad = bad_files(copy)
    note_verified(copy, bad, now)
    return bad


def verify(job: StorageJob, note: Note, bytes_per_second: int | None) -> VersionCopy:
    """Read the copy of a job, on from where an earlier try was, and note what is wrong with it.

    Raises LocationUnreachable, also when it goes meanwhile: what cannot be seen is not damaged.
    """
    copy = VersionCopy.objects.select_related("location", "version__model").get(
        version=job.version_id, location=job.location_id
    )
    store, files = reach(copy.location), manifest_of(copy.version).files
    done, bad = int(job.detail.get("next", 0)), list(job.detail.get("bad", []))
    note(sum(file.size_bytes for file in files[:done]))
    with _reader(bytes_per_second, note) as read:
        for index, file in enumerate(files[done:], done + 1):
            if found := check_file(copy, store, file, read):
                bad.append(found)
            StorageJob.objects.filter(pk=job.pk).update(detail={"next": index, "bad": bad})
    note_verified(copy, bad, timezone.now())
    return copy


def note_verified(copy: VersionCopy, bad: list[dict[str, str]], now: dt.datetime) -> None:
    """All of it was read."""
    copy.verified_at = now
    copy.save(update_fields=["verified_at"])
    note_bad(copy, bad)
    forget_places()
    log.info("copy.verified", copy=str(copy), bad=len(bad))


def check_file(copy: VersionCopy, store: Store, file: ManifestFile, read: Read) -> dict[str, str] | None:
    """What is wrong with one file. Raises LocationUnreachable when its disk went away meanwhile."""
    check = _problem_in_place if copy.in_place else _problem_in_store
    problem = check(copy, store, file, read)
    if not problem:
        return None
    if why := why_unreachable(copy.location):
        raise LocationUnreachable(f"The location {copy.location} went away: {why}")
    return {"path": file.path, "sha256": file.sha256, "problem": problem}


def _problem_in_store(copy: VersionCopy, store: Store, file: ManifestFile, read: Read) -> str:
    blob, name = store.blob_path(file.sha256), copy.path / file.path
    if problem := _problem_of(blob, file, read):
        return problem
    try:
        same = name.samefile(blob)
    except OSError:
        return MISSING
    return "" if same else _problem_of(name, file, read)


def _problem_in_place(copy: VersionCopy, store: Store, file: ManifestFile, read: Read) -> str:
    path = copy.path / file.path
    noted = InPlaceFile.objects.filter(copy=copy, path=file.path).first()
    problem = _problem_of(path, file, read)
    if noted is None or is_as_hashed(path, noted):
        return problem
    if problem:
        return what_changed(path, noted)
    note_file(copy, file, path.stat())  # somebody brought the same bytes again
    return ""


def _problem_of(path: Path, file: ManifestFile, read: Read) -> str:
    try:
        return "" if read(path) == file.sha256 else DIFFERS
    except FileNotFoundError:
        return MISSING
    except OSError as error:  # a bad sector, or no leave to read it
        return f"cannot be read ({error.strerror or error})"


def note_file(copy: VersionCopy, file: ManifestFile, status: os.stat_result) -> None:
    """This is the file in place that was hashed."""
    seen = {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": str(status.st_ino)}
    InPlaceFile.objects.update_or_create(copy=copy, path=file.path, defaults={"sha256": file.sha256, **seen})


def look_in_place(copy: VersionCopy) -> None:
    """A cheap look at a copy in place: a file that is not as it was when it was hashed makes it damaged.

    Whether the bytes are others, only reading tells: `verify` may find it whole again.
    """
    found = []
    for noted in copy.files.all():
        path = copy.path / noted.path
        if not is_as_hashed(path, noted):
            found.append({"path": noted.path, "sha256": noted.sha256, "problem": what_changed(path, noted)})
    known = {one["path"] for one in copy.bad}
    more = [one for one in found if one["path"] not in known]
    if not more or why_unreachable(copy.location):
        return
    note_bad(copy, [*copy.bad, *more])
    forget_places()
    log.error("store.damaged", copy=str(copy), problem=copy.problem)
    store_damaged.send(VersionCopy, copy=copy, now=timezone.now())


def note_missing(copy: VersionCopy, store: Store) -> None:
    """A cheap look at a copy in our store: files that are not there, or have another size, are noted."""
    found = []
    for file in manifest_of(copy.version).files:
        path = store.blob_path(file.sha256)
        if not path.is_file():
            found.append({"path": file.path, "sha256": file.sha256, "problem": MISSING})
        elif path.stat().st_size != file.size_bytes:
            found.append({"path": file.path, "sha256": file.sha256, "problem": DIFFERS})
    if found:
        note_bad(copy, found)
        log.error("store.damaged", copy=str(copy), problem=copy.problem)


def what_changed(path: Path, noted: InPlaceFile) -> str:
    """In words, compared with when it was hashed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if status.st_size != noted.size_bytes:
        return f"has {status.st_size} bytes instead of {noted.size_bytes}"
    if status.st_mtime_ns != noted.mtime_ns:
        when = dt.datetime.fromtimestamp(status.st_mtime, dt.UTC)
        return f"was changed at {when:%Y-%m-%d %H:%M} UTC"
    return "was replaced by another file"


def whole_in_place(location_id: int) -> Iterator[VersionCopy]:
    """Copies in place there that a cheap look may find changed."""
    rows = VersionCopy.objects.filter(location=location_id, in_place=True, version__state="ready")
    yield from rows.exclude(state=CopyState.MISSING).select_related("location", "version__model")


# ------------------------------------------------------------------------------------------------ reading


def sha256_of(path: Path) -> str:
    """As fast as it goes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _reader(bytes_per_second: int | None, note: Note) -> Iterator[Read]:
    """Reads in a thread of low priority and not faster than that; what waits for it tells how far it is."""
    with ThreadPoolExecutor(1, "scrub", initializer=_yield_to_others) as executor:

        def read(path: Path) -> str:
            work = _Reading(path, bytes_per_second)
            future: Future[str] = executor.submit(work.run)
            try:
                while True:
                    try:
                        return future.result(timeout=_TOLD_EVERY_S)
                    except NotYet:
                        if future.done():
                            raise
                        note(work.taken())
            finally:
                work.stopped = True
                note(work.taken())

        yield read


class _Reading:
    """One file on its way through the hash."""

    def __init__(self, path: Path, bytes_per_second: int | None) -> None:
        self.stopped = False
        self._path = path
        self._bytes_per_second = bytes_per_second
        self._read = self._told = 0

    def run(self) -> str:
        digest = hashlib.sha256()
        began = time.monotonic()
        with self._path.open("rb", buffering=0) as file:
            while not self.stopped and (chunk := file.read(_CHUNK_BYTES)):
                digest.update(chunk)
                self._read += len(chunk)
                os.posix_fadvise(file.fileno(), 0, self._read, os.POSIX_FADV_DONTNEED)  # others need that memory
                if self._bytes_per_second:
                    time.sleep(max(0.0, began + self._read / self._bytes_per_second - time.monotonic()))
        return digest.hexdigest()

    def taken(self) -> int:
        """Bytes read since the last call."""
        more, self._told = self._read - self._told, self._read
        return more


def _yield_to_others() -> None:
    with suppress(OSError):  # Linux: of this thread only
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
