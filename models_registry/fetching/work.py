"""What a worker does with an import from elsewhere: bytes come in one thread, rows are written and read in another."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from django.conf import settings
from django.utils import timezone

from models_registry.download.downloader import running
from models_registry.download.lanes import Control
from models_registry.download.partial import Done
from models_registry.download.remote import Remote
from models_registry.download.transfer import Progress, Wanted
from models_registry.errors import BadSource, ImportCancelled, RegistryError
from models_registry.fetching.policy import limit_at
from models_registry.fetching.shares import Contender, share_of
from models_registry.locations.copies import known_bad
from models_registry.locations.mend import drop_other_name
from models_registry.locations.places import location_of
from models_registry.locations.room import check_files
from models_registry.models import ImportJob, ModelVersion
from models_registry.store import Store
from models_registry.versions import store_of
from wire.errors import BadMessage
from wire.manifest import ManifestFile, check_paths
from wire.pace import Limit

_LOOK_S = 0.5
_FILES_TOLD = 20
_SILENT_AFTER = dt.timedelta(seconds=10)
"""A fetch that has told nothing for so long takes part in nothing."""


class Detail(msgspec.Struct, frozen=True):
    """How far it is. `files` are those under way: (path, bytes there, bytes in all)."""

    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: float = 0.0
    eta_s: float | None = None
    files: tuple[tuple[str, int, int], ...] = ()


class Parked(Exception):
    """It was paused: all that is there stays, and its worker is free for others."""


@dataclass(frozen=True)
class Item:
    """A file of a version to be, and where its bytes are. Without `sha256` it is hashed on the way.

    `place` names it among the files under way: two imports of one content have the same.
    """

    path: str
    size: int
    remote: Remote
    place: str
    sha256: str = ""
    git_sha1: str = ""


def fetch(
    row: ModelVersion, job: ImportJob, items: Sequence[Item], *, loopback: bool
) -> list[tuple[ManifestFile, Path]]:
    """Every file, whole and verified, with where it lies.

    Raises Parked, RegistryError, and the database's errors.
    """
    try:
        check_paths([one.path for one in items])
    except BadMessage as error:
        raise BadSource(
            f"The source lists files that no folder can hold: {error.message}.", remedy="Name the files to take."
        ) from error
    store_ = store_of(job)
    location = location_of(store_)
    bad = known_bad(location)
    for sha256 in bad:
        drop_other_name(store_, sha256)
    missing = [one for one in items if one.sha256 in {"", *bad} or not _is_stored(store_, one)]
    check_files(
        location,
        [ManifestFile(path=one.path, size_bytes=one.size, sha256=one.sha256 or one.place) for one in items],
    )
    wanted = [
        Wanted(store_.downloads / one.place, one.size, one.remote, sha256=one.sha256, git_sha1=one.git_sha1)
        for one in missing
    ]
    have = sum(one.size for one in items) - sum(one.size for one in missing)
    done = _Watch(row, job, have).fetch(wanted, loopback=loopback)
    found = {one.path: (file, store_.downloads / one.place) for one, file in zip(missing, done, strict=True)}
    return [
        (ManifestFile(path=one.path, size_bytes=one.size, sha256=found[one.path][0].sha256), found[one.path][1])
        if one.path in found
        else (ManifestFile(path=one.path, size_bytes=one.size, sha256=one.sha256), store_.blob_path(one.sha256))
        for one in items
    ]


def _is_stored(store_: Store, one: Item) -> bool:
    """Also by its size: a file that was cut is not what it was."""
    try:
        return store_.blob_path(one.sha256).stat().st_size == one.size
    except FileNotFoundError:
        return False


def is_wanted(row: ModelVersion) -> None:
    """Raises ImportCancelled, Parked, RegistryError when nobody waits for this import now."""
    said = ImportJob.objects.filter(pk=row.pk).values_list("paused", "cancelled").first()
    if said is None:
        raise RegistryError(f"The import of {row} was ended meanwhile.")
    if said[1]:
        raise ImportCancelled("The import was cancelled.")
    if said[0]:
        raise Parked


class _Watch:
    """Looks after one fetch: tells how far it is, and does what people have said meanwhile."""

    def __init__(self, row: ModelVersion, job: ImportJob, have: int) -> None:
        self._row = row
        self._job = job
        self._have = have
        self._control = Control(Limit(job.limit_bytes_per_second))

    def fetch(self, wanted: list[Wanted], *, loopback: bool) -> list[Done]:
        is_wanted(self._row)
        work = _Work(wanted, self._control, loopback=loopback)
        self._look(work.told)
        work.start()
        try:
            while not work.wait(_LOOK_S):
                self._look(work.told)
        except BaseException:
            self._control.cancelled = True
            work.wait(None)
            raise
        if isinstance(work.error, ImportCancelled):
            is_wanted(self._row)
            raise Parked  # it was told to go on before its connections had ended: the next try does
        if work.error is not None:
            raise work.error
        self._look(work.told)
        return work.done

    def _look(self, told: Progress) -> None:
        total, done = told.total_bytes + self._have, told.done_bytes + self._have
        files = [one for one in told.files if 0 < one[1] < one[2]][:_FILES_TOLD]
        detail = Detail(done, total, round(told.bytes_per_second, 1), told.eta_s, tuple(files))
        now = timezone.now()
        ImportJob.objects.filter(pk=self._job.pk).update(detail=msgspec.to_builtins(detail), touched_at=now)
        ModelVersion.objects.filter(pk=self._row.pk).update(progress=done / total if total else 1.0)
        self._obey(now)

    def _obey(self, now: dt.datetime) -> None:
        job = ImportJob.objects.filter(pk=self._job.pk).only("paused", "cancelled", "limit_bytes_per_second").first()
        if job is None or job.paused or job.cancelled:  # None: the row was deleted, or called failed
            self._control.cancelled = True
            return
        share = share_of(self._job.pk, self._contenders(now), settings.HUB_CONNECTIONS, limit_at(now))
        limits = [one for one in (job.limit_bytes_per_second, share.bytes_per_second) if one]
        self._control.limit.bytes_per_second = min(limits, default=None)
        self._control.connections = share.connections

    def _contenders(self, now: dt.datetime) -> list[Contender]:
        """All that are fetched now, this one among them. A clock that jumps makes others look silent for a moment."""
        running = ImportJob.objects.filter(ImportJob.FETCHED, paused=False, started_at__isnull=False)
        lively = running.filter(touched_at__gt=now - _SILENT_AFTER) | running.filter(pk=self._job.pk)
        return [Contender(*one) for one in lively.values_list("pk", "priority").distinct()] or [
            Contender(self._job.pk, 0)
        ]


class _Work(threading.Thread):
    """The downloader in a loop of its own."""

    def __init__(self, wanted: list[Wanted], control: Control, *, loopback: bool) -> None:
        super().__init__(name="download", daemon=True)
        self.told = Progress(0, sum(one.size for one in wanted), 0.0, ())
        self.done: list[Done] = []
        self.error: BaseException | None = None
        self._wanted = wanted
        self._control = control
        self._loopback = loopback
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            self.done = asyncio.run(self._fetch())
        except BaseException as error:
            self.error = error
        finally:
            self._ended.set()

    def wait(self, seconds: float | None) -> bool:
        """Whether it has ended."""
        return self._ended.wait(seconds)

    async def _fetch(self) -> list[Done]:
        async with running(settings.HUB_CONNECTIONS, loopback=self._loopback) as downloader:
            return await downloader.fetch(self._wanted, control=self._control, progress=self._note)

    def _note(self, told: Progress) -> None:
        self.told = told
