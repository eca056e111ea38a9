"""Verbs of the model registry: take in files as an immutable version, and check them. Removing: removal.py."""

from __future__ import annotations

import datetime as dt
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from django.db import InterfaceError, OperationalError, transaction
from django.db.models import Q
from kombu.exceptions import OperationalError as BrokerError

from models_registry import attempts
from models_registry.archive.reading import archive_at
from models_registry.errors import LocationUnreachable, RegistryError
from models_registry.fetching import kinds
from models_registry.fetching.work import Parked
from models_registry.intake import named, staged_files
from models_registry.location_models import StorageLocation
from models_registry.locations import copies, find_blob, scrub
from models_registry.locations import in_place as shared
from models_registry.locations.clean import clean_all_leftovers
from models_registry.locations.places import builtin, writable
from models_registry.locations.room import choose
from models_registry.models import ImportJob, Model, ModelVersion, VersionState
from models_registry.pieces import prepare_pieces
from models_registry.scan import scan
from models_registry.sources import check_name, checked_source, own_paths
from models_registry.store import Progress, Staged, Store
from models_registry.versions import (
    import_lock,
    inspect_staged,
    new_row,
    publish,
    publish_importing,
    ready_twin,
    store,
)
from wire.manifest import Manifest

log = structlog.get_logger(__name__)

IMPORT_DEADLINE = dt.timedelta(hours=12)
"""An import that is still not done after this is called failed; the broker's visibility timeout is as long."""
_PROGRESS_EVERY_S = 0.5


def import_path(
    name: str | None,
    path: Path,
    *,
    version: str | None = None,
    link: bool = False,
    source: str = "",
    by: str = "",
    location: StorageLocation | None = None,
    now: dt.datetime,
    progress: Progress | None = None,
) -> ModelVersion:
    """Take a file or folder on this machine in as a version of model `name`; READY when this returns.

    The same files under the same name are the same version: it is returned, whatever `version` says. Without
    `version` the next free number is taken. A failure leaves no row and no file behind.

    An archive (`models_registry.archive`) is unpacked; without `name` and `version` they are then what it says.
    Raises BadSource, BadArchive, DamagedModel, NoSpace, InvalidName, VersionTaken, LocationReadOnly,
    LocationUnreachable.
    """
    check_name(name, version)
    path = checked_source(path)
    archive = archive_at(path)
    name, version = named(name, version, archive)
    place = writable(choose(location))
    with staged_files(place, path, archive, link=link, protected=own_paths(), progress=progress) as staged:
        facts = inspect_staged(staged)
        with place.lock(), transaction.atomic():
            model, _ = Model.objects.get_or_create(name=name)
            row = ready_twin(model, staged) or new_row(
                model, version, source=source or str(path), now=now, imported_by=by
            )
            publish(row, staged, facts)
    log.info("model.imported", model=str(row), digest=row.digest, size_bytes=row.size_bytes)
    prepare_pieces(manifest_of(row), find_blob)
    return row


def start_import(
    name: str | None,
    path: Path,
    *,
    version: str | None = None,
    link: bool = False,
    in_place: bool = False,
    source: str = "",
    by: str = "",
    location: StorageLocation | None = None,
    now: dt.datetime,
) -> ModelVersion:
    """Like `import_path`, by a worker: the row is IMPORTING now, and READY or FAILED (with `error`) later.

    `in_place`: nothing is copied, the files stay where they are on the shared storage that is `location`.
    What can be said at once is: raises BadSource, BadArchive, InvalidName, VersionTaken, QuotaExceeded,
    LocationReadOnly, LocationUnreachable.
    """
    check_name(name, version)
    path = checked_source(path)
    source = source or str(path)
    if in_place:
        name, version = named(name, version, None)
        path = shared.check(location, path)
        scan(path, own_paths())
        job = ImportJob(path=str(path), in_place=True, location=location, queued_at=now)
        return begin(name, version, job, source=source, imported_by=by)
    archive = archive_at(path)
    name, version = named(name, version, archive)
    files = archive.manifest.files if archive else scan(path, own_paths())
    place = choose(location, sum(file.size_bytes for file in files))
    job = ImportJob(path=str(path), link=link, location=place, queued_at=now)
    return begin(name, version, job, source=source, imported_by=by)


def start_upload(
    name: str | None,
    temporary: Path,
    file_name: str,
    *,
    version: str | None = None,
    location: StorageLocation | None = None,
    by: str = "",
    now: dt.datetime,
) -> ModelVersion:
    """Take in a file that a person sent; `temporary` is moved away. Raises as `start_import`."""
    check_name(name, version)
    place = choose(location, temporary.stat().st_size)
    uploads = store()
    kept = uploads.keep_upload(temporary, file_name)
    job = ImportJob(path=str(kept), link=True, upload=True, location=place, queued_at=now)
    try:
        name, version = named(name, version, archive_at(kept))
        return begin(name, version, job, source=f"upload of {file_name}", imported_by=by)
    except Exception:
        uploads.drop_upload(kept)
        raise


def finish_import(version_id: int, now: dt.datetime) -> VersionState | None:
    """The worker's part of `start_import`; calling it again, or after a killed worker, is harmless.

    Returns the state it ended in, None when the row is gone. IMPORTING: another worker is at it.
    """
    job = ImportJob.objects.select_related("version__model", "location").filter(pk=version_id).first()
    if job is None:
        state = ModelVersion.objects.filter(pk=version_id).values_list("state", flat=True).first()
        return VersionState(state) if state else None
    try:
        lock = import_lock(job)
    except LocationUnreachable as error:
        return attempts.wait_for_disk(job, error, now)
    with lock as mine:
        row = ModelVersion.objects.select_related("model", "job__location").filter(pk=version_id).first()
        if row is None or row.state != VersionState.IMPORTING or not mine:
            return VersionState(row.state) if row else None
        if row.job.paused:
            return VersionState.IMPORTING
        if attempts.are_vain(row.job):
            return fail_import(row, attempts.lost(row.job))
        attempts.begin(row.job, now)
        try:
            _take_in(row, row.job)
        except Parked:
            ImportJob.objects.filter(pk=row.pk).update(started_at=None, attempts=0)
        except LocationUnreachable as error:
            return attempts.wait_for_disk(row.job, error, now)
        except (OperationalError, InterfaceError):  # of the database: nothing can be noted; `heal_imports` comes back
            raise
        except Exception as error:
            if not isinstance(error, RegistryError):
                log.exception("model.import_broke_off", model=str(row))
            return fail_import(row, error)
        else:
            _forget(row.job)
            log.info("model.imported", model=str(row), digest=row.digest, size_bytes=row.size_bytes)
            prepare_pieces(manifest_of(row), find_blob)
            return VersionState.READY
    return _parked(row)


def work_on(version_id: int, now: dt.datetime) -> VersionState | None:
    """What a worker does with a task: this import, or one that waits and comes before it.

    There is a task for each import that waits, so whichever a task names, none is forgotten. Returns the state that
    the import ended in.
    """
    named = ImportJob.objects.filter(pk=version_id).first()
    if named is not None and named.started_at is not None:  # given to the broker a second time
        state = finish_import(version_id, now)
        if state != VersionState.IMPORTING:
            return state
    waiting = ImportJob.objects.filter(version__state=VersionState.IMPORTING, started_at=None, paused=False)
    for key in list(waiting.order_by("-priority", "queued_at", "pk").values_list("pk", flat=True)):
        state = finish_import(key, now)
        if state not in (None, VersionState.IMPORTING):  # else another worker was quicker, or it was paused
            return state
    row = ModelVersion.objects.filter(pk=version_id).first()
    return VersionState(row.state) if row else None


def requeue(row: ModelVersion, now: dt.datetime) -> None:
    """Have a worker take it up that had let go of it."""
    ImportJob.objects.filter(pk=row.pk).update(queued_at=now)
    transaction.on_commit(lambda: _enqueue(row))


def fail_import(row: ModelVersion, error: Exception) -> VersionState:
    """Mark an import as failed, in words; an import that became READY meanwhile stays so."""
    text = f"{error.message} {error.remedy}" if isinstance(error, RegistryError) else f"The import broke off: {error}."
    importing = ModelVersion.objects.filter(pk=row.pk, state=VersionState.IMPORTING)
    importing.update(state=VersionState.FAILED, error=text.replace("\0", ""))
    for job in ImportJob.objects.select_related("version", "location").filter(pk=row.pk):
        kinds.give_back(job)
        _forget(job)
    log.warning("model.import_failed", model=str(row), error=text)
    return VersionState.FAILED


def heal_imports(now: dt.datetime) -> int:
    """Start imports again whose worker is gone, or whose task never came to one. How many were started.

    A worker holds a lock while it imports, which ends with its process: the broker would hand its task to another
    worker only after the visibility timeout, hours later. After `attempts.MOST` an import is called failed.
    """
    started = 0
    importing = ImportJob.objects.filter(version__state=VersionState.IMPORTING)
    for job in importing.select_related("version__model", "location"):
        if job.paused or not attempts.is_orphaned(job, now):
            continue
        if attempts.are_vain(job):
            fail_import(job.version, attempts.lost(job))
            continue
        same = ImportJob.objects.filter(pk=job.pk, queued_at=job.queued_at, started_at=job.started_at)
        if same.update(queued_at=now, started_at=None):
            log.warning("model.import_restarted", model=str(job.version), attempts=job.attempts)
            _enqueue(job.version)
            started += 1
    return started


def expire_imports(now: dt.datetime) -> int:
    """Call imports failed that are not done in IMPORT_DEADLINE; how many. What paused ones have fetched is kept."""
    for job in ImportJob.objects.filter(ImportJob.FETCHED, paused=True).select_related("version", "location"):
        kinds.keep(job)
    clean_all_leftovers()
    late = ModelVersion.objects.filter(state=VersionState.IMPORTING, created_at__lt=now - IMPORT_DEADLINE)
    moving = Q(job__touched_at__gte=now - IMPORT_DEADLINE) | Q(job__paused=True)  # from afar: slowly, but it comes
    rows = [row for row in late.exclude(moving).select_related("model") if not _is_fetched_now(row)]
    for row in rows:
        fail_import(
            row,
            RegistryError(
                row.error or "The import did not end in 12 hours: no worker was running, or the source is too slow.",
                remedy="Start the worker, then import the model again.",
            ),
        )
    return len(rows)


def _is_fetched_now(row: ModelVersion) -> bool:
    """A worker is at it, which gives up by itself when nothing comes: a clock that jumps must not end it."""
    job = ImportJob.objects.select_related("location").filter(ImportJob.FETCHED, pk=row.pk).first()
    if job is None:
        return False
    try:
        with import_lock(job) as mine:
            return not mine
    except LocationUnreachable:
        return False


def manifest_of(version: ModelVersion) -> Manifest:
    """Files of a READY version, as they travel to agents. Raises NotReady."""
    return copies.manifest_of(version)


def verify_version(version: ModelVersion) -> list[str]:
    """Paths of a READY version whose bytes in some copy within reach are not what they should be; reads all."""
    manifest_of(version)
    bad: set[str] = set()
    for copy in copies.copies_of(version):
        with suppress(LocationUnreachable):
            bad.update(one["path"] for one in scrub.bad_files(copy))
    return sorted(bad)


# ------------------------------------------------------------------------------------------------ parts


def begin(name: str, version: str | None, job: ImportJob, *, source: str, **about: Any) -> ModelVersion:
    """A row that is IMPORTING, and a worker told to do its job. `about`: see `new_row`.

    A location of the job has been chosen by `choose`. Raises VersionTaken, and as `choose` does.
    """
    job.location = job.location or choose(None)
    with transaction.atomic():
        model, _ = Model.objects.get_or_create(name=name)
        row = new_row(model, version, source=source, now=job.queued_at, **about)
        job.version = row
        job.save(force_insert=True)
        transaction.on_commit(lambda: _enqueue(row))
    log.info("model.import_started", model=str(row), source=row.source)
    return row


def _enqueue(row: ModelVersion) -> None:
    from models_registry.tasks import import_version  # tasks call services: this is the one way back

    try:
        import_version.delay(row.pk)
    except BrokerError as error:
        fail_import(row, RegistryError(f"No worker can be reached: {error}.", remedy="Start Valkey, then try again."))


def _take_in(row: ModelVersion, job: ImportJob) -> None:
    """Files into the store, row READY. Paths are checked again: a link may lead elsewhere since the request."""
    if job.in_place:
        shared.take_in(row, job, _row_progress(row.pk))
        return
    place = writable(job.location or builtin())
    if job.is_fetched:
        with kinds.staged(row, job, place) as staged:
            _publish(row, staged)
        return
    path = Path(job.path) if job.upload else checked_source(Path(job.path))
    protected = () if job.upload else own_paths()
    archive = archive_at(path)
    note = _row_progress(row.pk)
    with staged_files(place, path, archive, link=job.link, protected=protected, progress=note) as staged:
        _publish(row, staged)


def _publish(row: ModelVersion, staged: Staged) -> None:
    facts = inspect_staged(staged)
    with staged.store.lock(), transaction.atomic():
        publish_importing(row, staged, facts)


def _parked(row: ModelVersion) -> VersionState:
    """A worker has let go of a paused import; when somebody let it go on at that very moment, one takes it up again."""
    if ImportJob.objects.filter(pk=row.pk, paused=False).exists():
        _enqueue(row)
    return VersionState.IMPORTING


def _forget(job: ImportJob) -> None:
    ImportJob.objects.filter(pk=job.pk).delete()
    if job.upload:
        kept = Path(job.path)
        Store(kept.parents[2]).drop_upload(kept)  # of the location that was the default one then


def _row_progress(version_id: int) -> Progress:
    """Keeps the row's progress up to date, twice a second at most."""
    last_s = float("-inf")

    def note(share: float) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= _PROGRESS_EVERY_S:
            last_s = time.monotonic()
            ModelVersion.objects.filter(pk=version_id, state=VersionState.IMPORTING).update(progress=round(share, 4))

    return note
