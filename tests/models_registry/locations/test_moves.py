"""Copies of versions: made, moved, deleted, over everything that can come between."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection

from config.home import SOURCE_DIR
from models_registry import removal
from models_registry import services as models
from models_registry.errors import (
    AlreadyThere,
    BadLocation,
    LastCopy,
    LocationReadOnly,
    LocationUnreachable,
    NoSpace,
    NotReady,
    QuotaExceeded,
    StorageBusy,
)
from models_registry.location_models import JobState, StorageJob, StorageLocation, VersionCopy
from models_registry.locations import clean, copies, find, jobs, places, services
from models_registry.models import ModelVersion
from tests.master import test_database_url
from tests.models_registry.factories import NOW, files_below, make_version, write_safetensors

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(tmp_path) -> ModelVersion:
    return make_version(write_safetensors(tmp_path / "m", shards=2))


def where(version: ModelVersion) -> list[str]:
    return [copy.location.name for copy in copies.copies_of(version)]


def only_copy(version: ModelVersion) -> VersionCopy:
    return copies.copies_of(version).get()


def done(job: StorageJob) -> JobState | None:
    state = jobs.finish_job(job.pk, NOW)
    job.refresh_from_db()
    return state


def test_a_version_is_copied_and_lies_in_both(tmp_path, version, add):
    big = add("big")
    job = jobs.start_copy(version, big, now=NOW)
    assert done(job) == "done"
    assert (job.share, job.error) == (1.0, "")
    assert where(version) == ["big", "default"]
    assert models.verify_version(version) == []
    assert (tmp_path / "big" / "versions" / version.digest / "config.json").exists()
    assert not list((tmp_path / "big" / "arrivals").glob("*"))
    clean.clean_all()
    assert models.verify_version(version) == []


def test_a_version_is_moved_and_nothing_of_it_stays_behind(version, model_store, add):
    big = add("big")
    assert done(jobs.start_move(only_copy(version), big, now=NOW)) == "done"
    assert where(version) == ["big"]
    assert files_below(model_store) == set()
    assert models.verify_version(version) == []
    assert find.find_blob(version.manifest["files"][0]["sha256"]) is not None


def test_files_that_another_version_needs_stay_when_one_is_moved(tmp_path, version, add):
    other = make_version(write_safetensors(tmp_path / "n", shards=1), name="other")
    assert done(jobs.start_move(only_copy(version), add("big"), now=NOW)) == "done"
    assert models.verify_version(other) == models.verify_version(version) == []


def test_what_is_there_of_another_version_is_not_copied_again(tmp_path, version, add):
    big = add("big")
    models.import_path("same", tmp_path / "m", location=big, now=NOW)
    services.change_location(big, quota_bytes=version.size_bytes)
    assert done(jobs.start_copy(version, big, now=NOW)) == "done"
    assert models.verify_version(version) == []


def test_what_cannot_be_copied_is_said_at_once(tmp_path, version, add):
    big, small, locked, away = add("big"), add("small", quota_bytes=10), add("locked"), add("away")
    services.change_location(locked, read_only=True)
    shutil.rmtree(tmp_path / "away")
    for location, error in (
        (places.builtin(), AlreadyThere),
        (small, QuotaExceeded),
        (locked, LocationReadOnly),
        (away, LocationUnreachable),
    ):
        with pytest.raises(error):
            jobs.start_copy(version, location, now=NOW)
    jobs.start_copy(version, big, now=NOW)
    with pytest.raises(StorageBusy):
        jobs.start_move(only_copy(version), big, now=NOW)
    assert StorageJob.objects.count() == 1


def test_the_last_whole_copy_is_not_deleted(tmp_path, version, add):
    with pytest.raises(LastCopy):
        copies.delete_copy(only_copy(version))
    done(jobs.start_copy(version, add("big"), now=NOW))
    mine, theirs = copies.copies_of(version).order_by("-location__builtin")
    (tmp_path / "big").rename(tmp_path / "unplugged")
    with pytest.raises(LastCopy, match="within reach"):
        copies.delete_copy(mine)
    (tmp_path / "unplugged").rename(tmp_path / "big")
    next((tmp_path / "big" / "blobs").rglob("*/*/*")).unlink()  # it says that it is whole, and is not
    with pytest.raises(LastCopy):
        copies.delete_copy(mine)
    copies.delete_copy(theirs)
    assert where(version) == ["default"]


@pytest.mark.django_db(transaction=True)
def test_the_rows_are_on_disk_before_the_old_files_go(version, add, monkeypatch):
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL waits for its disk by itself")
    modes = []

    def synchronous() -> int:
        with connection.cursor() as cursor:
            return cursor.execute("PRAGMA synchronous").fetchone()[0]

    original = copies.is_there
    monkeypatch.setattr(copies, "is_there", lambda copy: modes.append(synchronous()) or original(copy))
    assert done(jobs.start_move(only_copy(version), add("big"), now=NOW)) == "done"
    assert modes == [2]  # FULL
    assert synchronous() == 1


def test_a_copy_in_a_read_only_location_stays(version, add):
    big = add("big")
    done(jobs.start_copy(version, big, now=NOW))
    services.change_location(big, read_only=True)
    copy = copies.copies_of(version).get(location=big)
    with pytest.raises(LocationReadOnly):
        copies.delete_copy(copy)
    with pytest.raises(LocationReadOnly):
        jobs.start_move(copy, add("other"), now=NOW)


def test_a_copy_of_a_damaged_file_is_not_made(tmp_path, version, model_store, add):
    sha256 = version.manifest["files"][0]["sha256"]
    _spoil(model_store / "blobs" / "sha256" / sha256[:2] / sha256)
    job = jobs.start_move(only_copy(version), add("big"), now=NOW)
    assert done(job) == "failed"
    assert "is nowhere as it should be" in job.error
    assert files_below(tmp_path / "big") == set()
    assert where(version) == ["default"]


def test_a_damaged_file_at_the_destination_is_not_taken_for_a_good_one(tmp_path, version, add):
    big = add("big")
    models.import_path("same", tmp_path / "m", location=big, now=NOW)
    sha256 = version.manifest["files"][0]["sha256"]
    _spoil(tmp_path / "big" / "blobs" / "sha256" / sha256[:2] / sha256)
    assert done(jobs.start_move(only_copy(version), big, now=NOW)) == "done"
    assert models.verify_version(version) == []


def test_a_cancelled_move_leaves_everything_as_it_was(tmp_path, version, add, monkeypatch):
    job = jobs.start_move(only_copy(version), add("big"), now=NOW)
    monkeypatch.setattr(jobs, "_NOTED_EVERY_S", 0.0)
    monkeypatch.setattr(jobs, "_begin", lambda job, now: jobs.cancel_job(job))
    assert done(job) == "cancelled"
    assert where(version) == ["default"]
    assert files_below(tmp_path / "big") == set()
    with pytest.raises(NotReady, match="has ended"):
        jobs.cancel_job(job)


def test_a_version_that_is_deleted_meanwhile_is_not_copied(tmp_path, version, add):
    job = jobs.start_copy(version, add("big"), now=NOW)
    removal.delete_version(version)
    assert jobs.finish_job(job.pk, NOW) is None
    assert files_below(tmp_path / "big") == set()


def test_work_that_no_worker_ever_got_is_queued_again_after_a_while(version, add):
    job = jobs.start_copy(version, add("big"), now=NOW)
    assert jobs.heal_jobs(NOW) == 0
    assert jobs.heal_jobs(NOW + jobs.QUEUED_AT_MOST) == 1
    StorageJob.objects.update(state="running", attempts=jobs.MAX_ATTEMPTS)
    assert done(job) == "failed"
    assert "killed during each of 3 attempts" in job.error
    jobs.heal_jobs(job.ended_at + 2 * jobs.KEPT)
    assert not StorageJob.objects.exists()


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A file system of 66 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=66m", "none", folder]).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_full_is_said_at_once_and_one_that_becomes_full_leaves_nothing(
    tmp_path, tiny_disk, add, monkeypatch
):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "weights.bin").write_bytes(os.urandom(3 << 20))
    version = make_version(tmp_path / "big")
    tiny = services.add_location("tiny", str(tiny_disk), now=NOW)
    with pytest.raises(NoSpace, match="to spare"):
        jobs.start_copy(version, tiny, now=NOW)
    monkeypatch.setattr(jobs.room, "SPARE_BYTES", 0)
    job = jobs.start_move(only_copy(version), tiny, now=NOW)
    (tiny_disk / "filler").write_bytes(b"x" * (65 << 20))  # by somebody else, meanwhile
    monkeypatch.setattr(jobs.room, "check_disk", lambda *_: None)
    assert done(job) == "failed"
    assert "became full" in job.error
    assert files_below(tiny_disk) == {"filler"}
    assert where(version) == ["default"]
    (tiny_disk / "filler").unlink()
    assert done(jobs.start_move(only_copy(version), tiny, now=NOW)) == "done"
    assert where(version) == ["tiny"]


# ------------------------------------------------------------------------------------------------ other processes

WORKER = """
import os, sys
import django
django.setup()
from pathlib import Path
from django.conf import settings
from django.utils import timezone
from models_registry.locations import copies, jobs

class Home:
    path = Path(sys.argv[2])

settings.MODEL_STORE_DIR, settings.HOME, settings.CA_DIR = Path(sys.argv[1]), Home, Home.path / "ca"
jobs._enqueue = lambda job: None

def stop(*args, **kwargs):
    print("there", flush=True)
    sys.stdin.read()

def noter(job):
    noted = 0
    def note(count):
        nonlocal noted
        noted += count
        if noted > 2_000_000:
            stop()
    return note

match sys.argv[4]:
    case "copying":
        jobs._noter = noter
    case "before it is recorded":
        copies.sync = stop
    case "before the old one goes":
        jobs.delete_copy = stop
    case "before the old files go":
        copies.clean_location = stop
print(jobs.finish_job(int(sys.argv[3]), timezone.now()), flush=True)
"""


@pytest.fixture
def worker(transactional_db, tmp_path, model_store) -> Iterator:
    """Starts a process that does a job, and stops at a point."""
    started = []

    def start(job: StorageJob, point: str = "") -> subprocess.Popen:
        environment = os.environ | {
            "DATABASE_URL": test_database_url(),
            "DJANGO_SETTINGS_MODULE": "config.settings.test",
        }
        command = [sys.executable, "-c", WORKER, str(model_store), str(tmp_path / "home"), str(job.pk), point]
        started.append(
            subprocess.Popen(
                command, env=environment, cwd=SOURCE_DIR, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def large(tmp_path: Path) -> ModelVersion:
    (tmp_path / "large").mkdir()
    for name in ("a.bin", "b.bin"):
        (tmp_path / "large" / name).write_bytes(os.urandom(3_000_000))
    return make_version(tmp_path / "large")


@pytest.mark.parametrize(
    "point", ["copying", "before it is recorded", "before the old one goes", "before the old files go"]
)
def test_a_move_that_is_killed_at_any_moment_loses_nothing_and_ends_in_the_next_run(
    worker, tmp_path, model_store, add, point
):
    version = large(tmp_path)
    job = jobs.start_move(only_copy(version), add("big"), now=NOW)
    process = worker(job, point)
    assert process.stdout.readline() == "there\n"
    assert jobs.heal_jobs(NOW + 2 * jobs.QUEUED_AT_MOST) == 0  # it lives, however long it takes
    assert jobs.finish_job(job.pk, NOW) == "running"  # and nobody else does it meanwhile
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert models.verify_version(version) == []
    clean.clean_all()  # whenever it comes
    assert models.verify_version(version) == []
    assert jobs.heal_jobs(NOW) == 1
    assert done(job) == "done"
    assert where(version) == ["big"]
    assert models.verify_version(version) == []
    assert files_below(model_store) == set()
    assert not list((tmp_path / "big" / "arrivals").glob("*"))


def test_a_killed_copy_goes_on_with_the_files_that_are_there(worker, tmp_path, add, monkeypatch):
    version = large(tmp_path)
    job = jobs.start_copy(version, add("big"), now=NOW)
    process = worker(job, "copying")
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    there = tmp_path / "big" / "arrivals" / str(job.pk)
    assert any(there.iterdir())
    whole = [path for path in there.iterdir() if path.suffix == ".ok"]
    assert done(job) == "done"
    assert all(not path.exists() for path in whole)
    assert models.verify_version(version) == []


def test_two_processes_that_move_at_once_do_it_once(worker, tmp_path, add):
    version = large(tmp_path)
    job = jobs.start_move(only_copy(version), add("big"), now=NOW)
    processes = [worker(job) for _ in range(3)]
    ends = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert "done" in ends
    assert set(ends) <= {"done", "running", "queued"}
    assert where(version) == ["big"]
    assert models.verify_version(version) == []


@pytest.mark.django_db(transaction=True)
def test_of_two_copies_that_are_deleted_at_once_one_stays(tmp_path, version, add):
    done(jobs.start_copy(version, add("big"), now=NOW))
    both = list(copies.copies_of(version))
    refused = []

    def delete(copy: VersionCopy) -> None:
        try:
            copies.delete_copy(copy)
        except LastCopy as error:
            refused.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=delete, args=(copy,)) for copy in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert VersionCopy.objects.count() == 1
    assert models.verify_version(version) == []


def test_a_shared_folder_holds_copies_of_ours_too(tmp_path, version, add):
    (tmp_path / "nfs").mkdir()
    (tmp_path / "nfs" / "theirs.txt").write_text("x")
    nfs = add("nfs", kind="shared", server_path="/mnt/models")
    assert find.shared_dir(version) == ""
    assert done(jobs.start_copy(version, nfs, now=NOW)) == "done"
    assert find.shared_dir(version) == f"/mnt/models/.stokehold/{nfs.uid.hex}/versions/{version.digest}"
    removal.delete_version(version)
    services.remove_location(nfs)
    assert files_below(tmp_path / "nfs") == {"theirs.txt"}
    assert not StorageLocation.objects.filter(name="nfs").exists()


def test_one_in_a_folder_of_somebody_else_is_not_moved(version):
    copy = only_copy(version)
    copy.in_place = True
    with pytest.raises(BadLocation, match="never changed"):
        jobs.start_move(copy, copy.location, now=NOW)


def _spoil(path: Path) -> None:
    """One bit less, as disks do it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
