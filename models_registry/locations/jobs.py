"""Work on copies, by workers: copy, move and verify a version; with progress, and over the death of a worker."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import structlog
from django.conf import settings
from django.db import IntegrityError, InterfaceError, OperationalError, transaction
from django.db.models import Exists, F, OuterRef, Q
from django.utils import timezone
from kombu.exceptions import OperationalError as BrokerError

from models_registry.errors import AlreadyThere, BadLocation, NotReady, RegistryError, StorageBusy
from models_registry.file_locks import held
from models_registry.location_models import (
    UNDER_WAY,
    CopyState,
    JobKind,
    JobState,
    StorageJob,
    StorageLocation,
    VersionCopy,
)
from models_registry.locations import room, scrub
from models_registry.locations.clean import clean_location
from models_registry.locations.copies import copies_of, delete_copy, manifest_of
from models_registry.locations.find import forget_places
from models_registry.locations.places import reach, run_folder, writable
from models_registry.locations.repair import repair
from models_registry.locations.transfer import copy_version
from models_registry.models import ModelVersion, VersionState

log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 3
AT_ONCE = 2
QUEUED_AT_MOST = dt.timedelta(minutes=10)
KEPT = dt.timedelta(days=7)
"""How long what a job came to can be read."""
_NOTED_EVERY_S = 0.5
_SCRUB_AGAIN = dt.timedelta(days=1)


class JobEnded(Exception):
    """It is not wanted any more."""


def start_copy(version: ModelVersion, location: StorageLocation, *, now: dt.datetime) -> StorageJob:
    """Make `location` have a copy too.

    Raises NotReady, AlreadyThere, LocationReadOnly, LocationUnreachable, QuotaExceeded, NoSpace, StorageBusy.
    """
    _check_target(version, location)
    return _start(StorageJob(kind=JobKind.COPY, version=version, location=location, queued_at=now))


def start_move(copy: VersionCopy, location: StorageLocation, *, now: dt.datetime) -> StorageJob:
    """Bring a copy to `location`: it goes from where it is when the other one is there for good.

    Raises as `start_copy`, and BadLocation for one in place: nothing is removed from a folder of somebody else.
    """
    if copy.in_place:
        raise BadLocation(
            f"{copy} lies in a folder of somebody else, which is never changed.",
            remedy="Copy it, then delete the copy in place: its files stay.",
        )
    writable(copy.location)
    if location == copy.location or not _has_whole_copy(copy.version, location):
        _check_target(copy.version, location)
    job = StorageJob(kind=JobKind.MOVE, version=copy.version, location=location, source=copy.location, queued_at=now)
    return _start(job)


def start_moves(source: StorageLocation, location: StorageLocation, *, now: dt.datetime) -> list[StorageJob]:
    """Move every version that lies in `source`, and not in a folder of somebody else; those that are there go first.

    Raises as `start_move` when all together do not go in; a version with work under way is left out.
    """
    rows = room.stored_copies(source).filter(version__state=VersionState.READY)
    rows = rows.exclude(version__storage_jobs__state__in=UNDER_WAY).select_related("version__model", "location")
    found = list(rows.order_by("version__size_bytes", "pk"))
    store = writable(location)
    files = [file for copy in found for file in manifest_of(copy.version).files]
    more_bytes = room.new_bytes(location, files)
    room.check_quota(location, more_bytes)
    room.check_disk(location, store, more_bytes)
    return [start_move(copy, location, now=now) for copy in found]


def start_verify(copy: VersionCopy, *, now: dt.datetime) -> StorageJob:
    """Read a copy again, and repair it. Raises NotReady, LocationUnreachable, StorageBusy."""
    manifest_of(copy.version)
    reach(copy.location)
    return _start(StorageJob(kind=JobKind.VERIFY, version=copy.version, location=copy.location, queued_at=now))


def cancel_job(job: StorageJob) -> None:
    """End it within a second; what it has done stays as it was before. Raises NotReady when it has ended."""
    same = StorageJob.objects.filter(pk=job.pk, state__in=UNDER_WAY)
    if not same.update(state=JobState.CANCELLED, ended_at=timezone.now()):
        raise NotReady(f"The {job.kind} of {job.version} has ended.", remedy="Look at what it came to.")
    log.info("storage_job.cancelled", job=str(job))


def finish_job(job_id: int, now: dt.datetime) -> JobState | None:
    """The worker's part; calling it again, or after a killed worker, is harmless.

    The state it ended in; None when the row is gone. Under way: another worker is at it, or others come first.
    """
    with held(run_folder() / f"{job_id}.lock") as mine, _slot() as free:
        rows = StorageJob.objects.select_related("version__model", "location", "source")
        job = rows.filter(pk=job_id).first()
        if job is None or not job.is_under_way or not mine or not free:
            return JobState(job.state) if job else None
        if job.attempts >= MAX_ATTEMPTS and job.done_bytes <= job.seen_bytes:
            return _end(job, JobState.FAILED, _lost(job))
        _begin(job, now)
        try:
            _WORK[JobKind(job.kind)](job)
        except JobEnded:
            return JobState.CANCELLED
        except (OperationalError, InterfaceError):  # of the database: nothing can be noted; `heal_jobs` comes back
            raise
        except RegistryError as error:
            return _end(job, JobState.FAILED, f"{error.message} {error.remedy}")
        except Exception as error:
            log.exception("storage_job.broke_off", job=str(job))
            return _end(job, JobState.FAILED, f"It broke off: {error}.")
        finally:
            forget_places()
        return _end(job, JobState.DONE)


@contextmanager
def _slot() -> Iterator[bool]:
    """Whether this one may be done now: a few at once, for a worker has other things to do than to move files."""
    with ExitStack() as stack:
        locks = (run_folder() / f"slot-{number}.lock" for number in range(AT_ONCE))
        yield any(stack.enter_context(held(lock)) for lock in locks)


def start_next() -> None:
    """Some work has ended: there is a free place for what has waited longest."""
    if job := StorageJob.objects.filter(state=JobState.QUEUED).order_by("queued_at", "pk").first():
        _enqueue(job)


def heal_jobs(now: dt.datetime) -> int:
    """Start work again whose worker is gone, or whose task never came to one. How many were started."""
    started = 0
    for job in StorageJob.objects.filter(state__in=UNDER_WAY).select_related("version__model", "location"):
        if job.state == JobState.QUEUED and now - job.queued_at < QUEUED_AT_MOST:
            continue
        with held(run_folder() / f"{job.pk}.lock") as free:
            if not free:
                continue
        same = StorageJob.objects.filter(pk=job.pk, state=job.state, queued_at=job.queued_at)
        if same.update(state=JobState.QUEUED, queued_at=now):
            log.warning("storage_job.restarted", job=str(job), attempts=job.attempts)
            _enqueue(job)
            started += 1
    StorageJob.objects.filter(ended_at__lt=now - KEPT).delete()
    return started


def start_due_scrub(now: dt.datetime) -> StorageJob | None:
    """Begin to read the copy that was not read for the longest time, when that is too long: one at a time."""
    if settings.SCRUB_EVERY_DAYS <= 0:
        return None
    if StorageJob.objects.filter(kind=JobKind.VERIFY, state__in=UNDER_WAY).exists():
        return None
    before = now - dt.timedelta(days=settings.SCRUB_EVERY_DAYS)
    due = Q(verified_at__lt=before) | Q(verified_at=None, created_at__lt=before)
    busy = StorageJob.objects.filter(state__in=UNDER_WAY).values("version")
    vain = StorageJob.objects.filter(  # one that breaks off each time must not keep the others from their turn
        kind=JobKind.VERIFY,
        state=JobState.FAILED,
        ended_at__gt=now - _SCRUB_AGAIN,
        version=OuterRef("version"),
        location=OuterRef("location"),
    )
    rows = VersionCopy.objects.filter(due, ~Exists(vain), location__reachable=True, version__state=VersionState.READY)
    ranked = rows.exclude(version__in=busy).order_by(F("verified_at").asc(nulls_first=True), "pk")
    for copy in ranked.select_related("location", "version__model")[:20]:
        try:
            return start_verify(copy, now=now)
        except RegistryError as error:
            log.warning("scrub.not_started", copy=str(copy), error=error.message)
    return None


# ------------------------------------------------------------------------------------------------ parts


def _check_target(version: ModelVersion, location: StorageLocation) -> None:
    manifest = manifest_of(version)
    store = writable(location)
    there = copies_of(version).filter(location=location).first()
    if there is not None and (there.in_place or there.state == CopyState.WHOLE):
        raise AlreadyThere(f"{version} lies in {location} already.")
    more_bytes = room.new_bytes(location, manifest.files)
    room.check_quota(location, more_bytes)
    room.check_disk(location, store, more_bytes)


def _has_whole_copy(version: ModelVersion, location: StorageLocation) -> bool:
    return copies_of(version).filter(location=location, state=CopyState.WHOLE).exists()


def _start(job: StorageJob) -> StorageJob:
    job.total_bytes = job.version.size_bytes
    try:
        with transaction.atomic():
            job.save(force_insert=True)
            transaction.on_commit(lambda: _enqueue(job))
    except IntegrityError as error:
        raise StorageBusy(f"Something is being done with the files of {job.version} already.") from error
    log.info("storage_job.started", job=str(job))
    return job


def _enqueue(job: StorageJob) -> None:
    from models_registry.locations.tasks import storage_job  # tasks call services: this is the one way back

    try:
        storage_job.delay(job.pk)
    except BrokerError as error:
        _end(job, JobState.FAILED, f"No worker can be reached: {error}. Start Valkey, then try again.")


def _begin(job: StorageJob, now: dt.datetime) -> None:
    """One that was killed after it had done something was no vain attempt."""
    attempts = 1 if job.done_bytes > job.seen_bytes else job.attempts + 1
    fields = {"attempts": attempts, "seen_bytes": job.done_bytes, "started_at": now, "state": JobState.RUNNING}
    StorageJob.objects.filter(pk=job.pk, state__in=UNDER_WAY).update(**fields)


def _end(job: StorageJob, state: JobState, error: str = "") -> JobState:
    fields = {"state": state, "error": error.replace("\0", ""), "ended_at": timezone.now()}
    if state == JobState.DONE:
        fields["done_bytes"] = job.total_bytes
    StorageJob.objects.filter(pk=job.pk, state__in=UNDER_WAY).update(**fields)
    write = log.warning if state == JobState.FAILED else log.info
    write(f"storage_job.{state}", job=str(job), error=error)
    return state


def _lost(job: StorageJob) -> str:
    return f"The worker was killed during each of {job.attempts} attempts: look into its log, then try again."


def _copy(job: StorageJob) -> None:
    copy_version(job, _noter(job), lambda: _still_wanted(job))


def _move(job: StorageJob) -> None:
    _copy(job)
    old = copies_of(job.version).filter(location=job.source).first()
    if old is not None:
        delete_copy(old)
    elif job.source is not None:  # an earlier try was killed just then
        clean_location(job.source)


def _verify(job: StorageJob) -> None:
    repair(scrub.verify(job, _noter(job), settings.SCRUB_BYTES_PER_SECOND or None))


_WORK: dict[JobKind, Callable[[StorageJob], None]] = {
    JobKind.COPY: _copy,
    JobKind.MOVE: _move,
    JobKind.VERIFY: _verify,
}


def _noter(job: StorageJob) -> Callable[[int], None]:
    """Keeps the row's progress up to date, twice a second at most; raises JobEnded when it is not wanted any more."""
    done_bytes, last_s = 0, float("-inf")

    def note(more_bytes: int) -> None:
        nonlocal done_bytes, last_s
        done_bytes += more_bytes
        if time.monotonic() - last_s >= _NOTED_EVERY_S:
            last_s = time.monotonic()
            if not StorageJob.objects.filter(pk=job.pk, state__in=UNDER_WAY).update(done_bytes=done_bytes):
                raise JobEnded

    return note


def _still_wanted(job: StorageJob) -> None:
    if not StorageJob.objects.filter(pk=job.pk, state__in=UNDER_WAY).exists():
        raise JobEnded
