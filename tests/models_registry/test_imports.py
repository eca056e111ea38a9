"""Imports by workers that are killed, lost, or at it twice."""

import datetime as dt
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import OperationalError, connection

from config.home import SOURCE_DIR
from models_registry import attempts, services, tasks
from models_registry.models import ImportJob, ModelVersion, VersionState
from tests.master import test_database_url
from tests.models_registry.factories import NOW, files_below, write_gguf

pytestmark = pytest.mark.django_db
WORKER = """
import sys
import django
django.setup()
from pathlib import Path
from django.conf import settings
from django.utils import timezone
from models_registry import services

settings.MODEL_STORE_DIR = Path(sys.argv[1])

def hold(version_id):
    def note(share):
        print("importing", flush=True)
        sys.stdin.read()
    return note

services._row_progress = hold
services.finish_import(int(sys.argv[2]), timezone.now())
"""


def state_of(version: ModelVersion) -> str:
    version.refresh_from_db()
    return version.state


def start(path: Path, **more) -> ModelVersion:
    """An import that waits for a worker: inside a test's transaction nothing is sent to one."""
    return services.start_import("tiny", path, now=NOW, **more)


def begun(version: ModelVersion, attempts: int = 1) -> ModelVersion:
    """As a worker leaves it that was killed."""
    ImportJob.objects.filter(pk=version.pk).update(started_at=NOW, attempts=attempts)
    return version


@pytest.fixture
def worker(transactional_db, tmp_path, model_store) -> Iterator[tuple[ModelVersion, subprocess.Popen]]:
    """A version, and a process that is in the middle of importing it."""
    job = ImportJob(path=str(write_gguf(tmp_path / "m")), queued_at=NOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "_enqueue", lambda row: None)
        version = services.begin("tiny", None, job, source="test")
    environment = os.environ | {"DATABASE_URL": test_database_url(), "DJANGO_SETTINGS_MODULE": "config.settings.test"}
    command = [sys.executable, "-c", WORKER, str(model_store), str(version.pk)]
    process = subprocess.Popen(
        command, env=environment, cwd=SOURCE_DIR, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "importing\n"
        yield version, process
    finally:
        process.kill()
        process.communicate()


def test_an_import_whose_worker_was_killed_is_done_by_another(worker, model_store):
    version, process = worker
    assert services.heal_imports(NOW + dt.timedelta(days=1)) == 0  # it lives, however long it takes
    assert tasks.import_version(version.pk) == "importing"  # and nobody else does it meanwhile
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert services.heal_imports(NOW) == 1
    assert state_of(version) == VersionState.READY
    assert services.verify_version(version) == []
    assert not ImportJob.objects.exists()
    assert not any((model_store / "staging").iterdir())
    assert not any((model_store / "imports").iterdir())


def test_an_import_that_kills_its_worker_each_time_fails_with_a_reason(tmp_path, model_store):
    version = begun(start(write_gguf(tmp_path)), attempts=attempts.MOST)
    assert services.heal_imports(NOW) == 0
    assert state_of(version) == VersionState.FAILED
    assert "killed during each of 3 attempts" in version.error
    assert not ImportJob.objects.exists()
    assert files_below(model_store) == set()


def test_a_task_that_comes_back_after_the_last_attempt_fails_it_too(tmp_path):
    version = begun(start(write_gguf(tmp_path)), attempts=attempts.MOST)
    assert tasks.import_version(version.pk) == "failed"
    assert "killed" in ModelVersion.objects.get().error


def test_an_import_no_worker_ever_got_is_queued_again_after_a_while(tmp_path, django_capture_on_commit_callbacks):
    version = start(write_gguf(tmp_path))
    assert services.heal_imports(NOW + dt.timedelta(minutes=9)) == 0
    assert state_of(version) == VersionState.IMPORTING
    assert services.heal_imports(NOW + dt.timedelta(minutes=10)) == 1
    assert state_of(version) == VersionState.READY


def test_an_import_is_taken_up_again_after_the_database_was_away(tmp_path, monkeypatch):
    version = start(write_gguf(tmp_path))

    def away(*args: object) -> None:
        raise OperationalError("the database is gone")

    with monkeypatch.context() as patch:
        patch.setattr(services, "publish_importing", away)
        with pytest.raises(OperationalError):
            services.finish_import(version.pk, NOW)
    assert state_of(version) == VersionState.IMPORTING
    assert services.heal_imports(NOW) == 1
    assert state_of(version) == VersionState.READY


def test_an_error_nobody_thought_of_fails_the_import_at_once(tmp_path, monkeypatch):
    version = start(write_gguf(tmp_path))

    def broken(*args: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(services, "publish_importing", broken)
    assert services.finish_import(version.pk, NOW) == VersionState.FAILED
    assert "broke off: odd" in ModelVersion.objects.get().error


def test_a_failed_upload_leaves_no_file(tmp_path, model_store):
    (tmp_path / "up").write_bytes(b"GGUF")
    version = services.start_upload("tiny", tmp_path / "up", "bad.gguf", now=NOW)
    assert len(files_below(model_store)) == 1
    assert tasks.import_version(version.pk) == "failed"
    assert files_below(model_store) == set()


def test_an_upload_outlives_a_killed_worker(tmp_path, model_store):
    version = begun(services.start_upload("tiny", write_gguf(tmp_path), "tiny.gguf", now=NOW))
    assert services.heal_imports(NOW) == 1
    assert state_of(version) == VersionState.READY
    assert not any((model_store / "uploads").iterdir())


def test_a_late_import_is_expired_with_its_job_and_its_upload(tmp_path, model_store):
    services.start_upload("tiny", write_gguf(tmp_path), "tiny.gguf", now=NOW)
    assert services.expire_imports(NOW + dt.timedelta(hours=13)) == 1
    assert not ImportJob.objects.exists()
    assert files_below(model_store) == set()


def test_a_link_that_leads_elsewhere_by_the_time_it_is_read_is_refused(settings, tmp_path, model_store):
    settings.CA_DIR = tmp_path / "ca"
    settings.CA_DIR.mkdir()
    (settings.CA_DIR / "ca.key").write_text("secret")
    write_gguf(tmp_path / "m")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "m")
    version = start(link)
    link.unlink()
    link.symlink_to(settings.CA_DIR)
    assert tasks.import_version(version.pk) == "failed"
    assert "home folder" in ModelVersion.objects.get().error
    assert files_below(model_store) == set()


@pytest.mark.django_db(transaction=True)
def test_imports_that_start_at_once_get_numbers_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "_enqueue", lambda row: None)
    path, together, results = write_gguf(tmp_path), threading.Barrier(6), []

    def run() -> None:
        try:
            together.wait(10)
            results.append(start(path).version)
        except Exception as error:  # shown by the assertion below
            results.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(str, results)) == ["1", "2", "3", "4", "5", "6"]


def test_healing_is_on_the_clock():
    entry = next(entry for entry in tasks.BEAT.values() if entry["task"] == tasks.heal_imports.name)
    assert entry["schedule"] <= 30
    tasks.heal_imports()
    tasks.expire_imports()
    tasks.clean_store()
