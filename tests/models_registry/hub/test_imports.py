"""Imports from a Hub: from the request to a READY version, over kills, pauses, lies and second thoughts."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from config.home import SOURCE_DIR
from models_registry import catalog, services
from models_registry.errors import BadSource, NotReady, SourceGone, TokenNameTaken
from models_registry.fetching import services as fetching
from models_registry.hub import pages
from models_registry.hub import services as hub_services
from models_registry.models import HubToken, ImportJob, ModelVersion, VersionState
from tests.fakes.hub import FakeHub, Fault, HubFile, serving_hub
from tests.master import test_database_url
from tests.models_registry.factories import NOW, gguf_bytes
from tests.models_registry.workers import fetched, noted, work
from tests.waiting import wait_for

pytestmark = pytest.mark.django_db(transaction=True)
PADDING = os.urandom(4_000_000)


@pytest.fixture
def hub(tmp_path: Path, settings: Settings) -> Iterator[FakeHub]:
    made = FakeHub(tokens={"hf_goodtoken": {"org/private"}})
    files = {
        "tiny-Q4_K_M.gguf": HubFile(gguf_bytes() + PADDING, lfs=True),
        "tiny-Q8_0.gguf": HubFile(b"other", lfs=True),
        "config.json": HubFile(b'{"model_type": "llama"}'),
        "README.md": HubFile(b"# Tiny"),
    }
    made.repo("org/tiny", files, license="mit")
    made.repo("org/private", files, private=True)
    settings.MODEL_STORE_DIR = tmp_path / "store"
    settings.HUB_TOKEN = ""
    with serving_hub(made):
        settings.HUB_ENDPOINT = made.url
        yield made


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent to a worker: the test is one."""
    monkeypatch.setattr(services, "_enqueue", lambda row: None)


def start(**options: Any) -> ModelVersion:
    return hub_services.start_hub_import("org/tiny", now=NOW, **options)


def downloads() -> list[Path]:
    return [path for path in services.store().downloads.glob("*") if path.is_file()]


def test_a_model_comes_from_the_hub_and_is_a_version_like_any_other(hub: FakeHub) -> None:
    row = start()
    assert row.state == VersionState.IMPORTING
    assert row.source == f"hf://org/tiny@{hub.repos['org/tiny'].refs['main']}"
    assert work(row) == VersionState.READY
    row.refresh_from_db()
    assert [file["path"] for file in row.manifest["files"]] == ["README.md", "config.json", "tiny-Q4_K_M.gguf"]
    assert (row.architecture, row.format) == ("llama", "gguf")
    assert services.verify_version(row) == []
    assert all(path.stat().st_nlink > 1 for path in downloads() if path.suffix != ".ok")  # no second copy
    assert not ImportJob.objects.exists()
    assert not list(Path(os.environ.get("HF_HOME", "/nowhere")).glob("**/blobs/*"))


def test_what_is_in_the_store_already_is_not_fetched_again(hub: FakeHub) -> None:
    work(start())
    sent = hub.sent["tiny-Q4_K_M.gguf"]
    hub.repos["org/tiny"].change({"README.md": HubFile(b"# Tiny, better")})
    row = start()
    assert work(row) == VersionState.READY
    assert hub.sent["tiny-Q4_K_M.gguf"] == sent
    assert services.verify_version(row) == []


def test_a_branch_that_moves_meanwhile_does_not_matter(hub: FakeHub) -> None:
    row = start()
    hub.repos["org/tiny"].push({"config.json": HubFile(b"{}")})
    assert work(row) == VersionState.READY


def test_chosen_files_patterns_names_and_tokens(hub: FakeHub) -> None:
    row = start(paths=["config.json", "tiny-Q8_0.gguf"], name="mine")
    assert [path for path, *_ in row.job.hub["files"]] == ["config.json", "tiny-Q8_0.gguf"]
    assert len(start(patterns=["*Q4*.gguf", "*.json"], name="some").job.hub["files"]) == 2
    with pytest.raises(BadSource, match="are the same model"):
        start(patterns=["*.gguf"])
    with pytest.raises(BadSource, match="matches"):
        start(patterns=["*.onnx"])
    with pytest.raises(SourceGone):
        hub_services.start_hub_import("org/private", now=NOW)
    token = hub_services.save_token("mine", "hf_goodtoken")
    private = hub_services.start_hub_import("org/private", token=token, now=NOW)
    assert work(private) == VersionState.READY
    assert "hf_goodtoken" not in str(list(HubToken.objects.values()))
    with pytest.raises(TokenNameTaken):
        hub_services.save_token("mine", "hf_othertoken")


def test_a_source_that_lies_fails_with_both_hashes_and_leaves_the_store_as_it_was(hub: FakeHub) -> None:
    good = start(name="good")
    work(good)
    hub.repos["org/tiny"].change({"tiny-Q4_K_M.gguf": HubFile(b"w" * 2_000_000, lfs=True)})
    hub.faults = [Fault("tiny-Q4_K_M.gguf", flip_at=1_000_000, times=-1)]
    row = start(name="bad")
    assert work(row) == VersionState.FAILED
    row.refresh_from_db()
    assert HubFile(b"w" * 2_000_000).sha256 in row.error
    assert "another mirror" in row.error
    assert services.verify_version(good) == []
    call_command("verify_store", stdout=io.StringIO())


def test_files_that_no_folder_can_hold_are_refused_before_a_byte_comes(hub: FakeHub) -> None:
    hub.repos["org/tiny"].change({"config.json/more.json": HubFile(b"{}")})
    row = start(patterns=["*Q4*", "*.json"])
    assert work(row) == VersionState.FAILED
    row.refresh_from_db()
    assert "'config.json' is a file, and 'config.json/more.json' lies in a folder of that name" in row.error
    assert "Name the files to take" in row.error
    assert not hub.sent["tiny-Q4_K_M.gguf"]


# ------------------------------------------------------------------------------------------------ while it runs


class Worker(threading.Thread):
    """Does one import, as a worker of Celery does."""

    def __init__(self, row: ModelVersion) -> None:
        super().__init__()
        self._row = row
        self.state: VersionState | None = None

    def run(self) -> None:
        try:
            self.state = work(self._row)
        finally:
            connection.close()


def test_it_tells_how_far_it_is_pauses_goes_on_and_is_limited(hub: FakeHub, client: Client, admin: User) -> None:
    row = start(limit_bytes_per_second=500_000)
    worker = Worker(row)
    worker.start()
    client.force_login(admin)
    url = f"/api/v1/model-versions/{row.pk}/"
    wait_for(lambda: fetched(row) > 300_000, what="progress")
    told = client.get(url).json()
    assert told["fetching"]["total_bytes"] > 4_000_000
    assert told["fetching"]["limit_bytes_per_second"] == 500_000
    assert 0 < told["progress"] < 1
    assert client.post(f"{url}pause/").json()["fetching"]["paused"] is True
    wait_for(lambda: hub.open == 0, what="silence")
    before = hub.sent.total()
    page = client.get(reverse("admin:models_registry_modelversion_change", args=[row.pk])).content.decode()
    assert "paused" in page
    assert hub.sent.total() == before
    worker.join(30)
    assert worker.state == VersionState.IMPORTING  # it is free for other imports
    assert services.heal_imports(timezone.now()) == 0
    client.post(f"{url}limit/", {"bytes_per_second": None}, "application/json")
    client.post(f"{url}resume/")
    assert work(row) == VersionState.READY
    assert client.get(url).json()["fetching"] is None
    assert client.post(f"{url}pause/").json()["code"] == "version_not_ready"


def test_cancelled_it_is_failed_and_goes_on_from_there_next_time(hub: FakeHub) -> None:
    row = start(limit_bytes_per_second=1_000_000)
    worker = Worker(row)
    worker.start()
    wait_for(lambda: fetched(row) > 1_000_000, what="progress")
    fetching.cancel_import(row)
    worker.join(30)
    row.refresh_from_db()
    assert (row.state, "cancelled" in row.error) == (VersionState.FAILED, True)
    with pytest.raises(NotReady):
        fetching.cancel_import(row)
    sent = hub.sent["tiny-Q4_K_M.gguf"]
    assert work(start()) == VersionState.READY
    assert hub.sent["tiny-Q4_K_M.gguf"] - sent < 4_000_000


def test_what_a_paused_import_has_fetched_outlasts_any_pause(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    row = start(limit_bytes_per_second=1_000_000)
    worker = Worker(row)
    worker.start()
    wait_for(lambda: fetched(row) > 1_000_000, what="progress")
    fetching.pause_import(row)
    worker.join(30)
    monkeypatch.setattr("models_registry.store._DOWNLOAD_LIFETIME_S", 2.0)
    time.sleep(2.1)  # the times of inodes are the kernel's: nothing can set them
    there = noted()
    services.expire_imports(timezone.now())
    assert noted() == there > 0
    assert list(services.store().downloads.glob("*.part"))


def test_cancelled_before_a_worker_came_it_ends_at_once(hub: FakeHub) -> None:
    row = start()
    fetching.cancel_import(row)
    row.refresh_from_db()
    assert row.state == VersionState.FAILED
    assert work(row) == VersionState.FAILED


def test_two_imports_of_the_same_files_share_one_transfer(hub: FakeHub) -> None:
    one, two = start(name="one"), start(name="two")
    hub.bytes_per_second = 2_000_000
    workers = [Worker(one), Worker(two)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.state for worker in workers] == [VersionState.READY] * 2
    assert hub.sent["tiny-Q4_K_M.gguf"] < 6_000_000


_WORKER = """
import sys
import django
django.setup()
from pathlib import Path
from django.conf import settings
from django.utils import timezone
from models_registry import catalog, services
from models_registry.download import transfer
settings.MODEL_STORE_DIR, settings.HUB_ENDPOINT = Path(sys.argv[1]), sys.argv[3]
transfer._CHECKPOINT_S = 0.1
services.finish_import(int(sys.argv[2]), timezone.now())
"""


def test_a_worker_that_is_killed_is_followed_by_one_that_goes_on(hub: FakeHub, settings: Settings) -> None:
    row = start(limit_bytes_per_second=1_000_000)
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings.test", "DATABASE_URL": test_database_url()}
    for least in (400_000, 900_000, 1_400_000, 1_900_000):  # more often than vain attempts are allowed
        command = [sys.executable, "-c", _WORKER, str(settings.MODEL_STORE_DIR), str(row.pk), hub.url]
        process = subprocess.Popen(command, cwd=SOURCE_DIR, env=environment)
        wait_for(lambda least=least: noted() > least, within_s=60, what="bytes that outlast a kill")
        process.send_signal(signal.SIGKILL)
        process.wait()
    ImportJob.objects.update(limit_bytes_per_second=None)
    assert services.heal_imports(timezone.now()) == 1
    sent = hub.sent["tiny-Q4_K_M.gguf"]
    assert work(row) == VersionState.READY
    assert hub.sent["tiny-Q4_K_M.gguf"] - sent < 3_000_000  # of 4,000,000
    row.refresh_from_db()
    assert services.verify_version(row) == []


# ------------------------------------------------------------------------------------------------ faces


def test_the_api_searches_shows_and_starts(hub: FakeHub, client: Client, admin: User) -> None:
    client.force_login(admin)
    hits = client.get("/api/v1/hub/models/", {"search": "tiny"}).json()
    assert [hit["repo"] for hit in hits] == ["org/tiny"]
    shown = client.get("/api/v1/hub/model/", {"repo": "org/tiny"}).json()
    taken = [file["path"] for file in shown["files"] if file["taken"]]
    assert sorted(taken) == ["README.md", "config.json", "tiny-Q4_K_M.gguf"]
    assert "GGUF Q4_K_M" in shown["reason"]
    missing = client.get("/api/v1/hub/model/", {"repo": "org/nothing"})
    assert (missing.status_code, missing.json()["code"]) == (404, "source_gone")
    made = client.post("/api/v1/model-versions/", {"repo": "org/tiny", "patterns": ["*Q8*"]}, "application/json")
    assert (made.status_code, made.json()["model"]) == (202, "org/tiny")
    both = client.post("/api/v1/model-versions/", {"repo": "org/tiny", "path": "/x", "model": "x"}, "application/json")
    assert both.status_code == 400
    token = client.post("/api/v1/hub-tokens/", {"name": "t", "token": "hf_goodtoken"}, "application/json")
    assert (token.status_code, "token" in token.json()) == (201, False)
    assert "hf_goodtoken" not in client.get("/api/v1/hub-tokens/").content.decode()
    private = client.get("/api/v1/hub/model/", {"repo": "org/private", "token": "t"})
    assert private.json()["private"] is True


def test_a_gated_model_tells_its_licence_and_waits_for_acceptance(hub: FakeHub) -> None:
    files = {"tiny.gguf": HubFile(gguf_bytes(), lfs=True)}
    hub.repo("org/terms", files, gated="auto", license="llama3.1")
    hub.tokens["hf_goodtoken"].add("org/terms")
    token = hub_services.save_token("t", "hf_goodtoken")
    row = hub_services.start_hub_import("org/terms", token=token, by="ann", now=NOW)
    assert work(row) == VersionState.READY
    assert (row.license, row.gated, row.imported_by) == ("llama3.1", True, "ann")
    assert catalog.waits_for_acceptance(row)


def test_who_may_not_import_does_not_look_with_our_tokens(hub: FakeHub, client: Client) -> None:
    client.force_login(User.objects.create_user("looks", password="x", is_staff=True))
    assert client.get("/api/v1/hub/models/", {"search": "tiny"}).status_code == 403
    assert client.get(reverse("admin:models_registry_modelversion_hub"), {"q": "tiny"}).status_code == 403


def test_the_page_takes_what_is_ticked_and_nothing_else(hub: FakeHub, client: Client, admin: User) -> None:
    client.force_login(admin)
    page = f"{reverse('admin:models_registry_modelversion_hub')}?q=https://huggingface.co/org/tiny/"
    assert "tiny-Q8_0.gguf" in client.get(page).content.decode()  # an address that was pasted
    assert "Choose at least one file" in client.post(page, {"name": "tiny"}).content.decode()
    both = {"name": "tiny", "files": ["tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf"]}
    assert "Q4_K_M and Q8_0 are the same model" in client.post(page, both).content.decode()
    assert not ModelVersion.objects.exists()


def test_files_that_do_not_fit_on_the_page_are_taken_as_proposed(
    hub: FakeHub, client: Client, admin: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST_SHOWN", 2)
    client.force_login(admin)
    page = f"{reverse('admin:models_registry_modelversion_hub')}?q=org/tiny"
    shown = client.get(page).content.decode()
    assert "2 more files are not shown; 1 of them (3.8 MiB) is taken too" in shown
    assert "data-hub-variant" not in shown  # of a quantization whose files have no boxes
    client.post(page, {"name": "tiny", "files": ["README.md"]})
    assert {file[0] for file in ImportJob.objects.get().hub["files"]} == {"README.md", "tiny-Q4_K_M.gguf"}


def test_the_pages_find_show_and_start(hub: FakeHub, client: Client, admin: User) -> None:
    client.force_login(admin)
    page = reverse("admin:models_registry_modelversion_hub")
    assert "org/tiny" in client.get(page, {"q": "tiny"}).content.decode()
    shown = client.get(page, {"q": "org/tiny"}).content.decode()
    assert "tiny-Q8_0.gguf" in shown
    started = client.post(f"{page}?q=org/tiny", {"name": "tiny", "files": ["config.json", "tiny-Q8_0.gguf"]})
    row = ModelVersion.objects.get()
    assert started.headers["Location"] == reverse("admin:models_registry_modelversion_change", args=[row.pk])
    assert str(row) == "tiny:1"
    assert "There is no org/nothing" in client.get(page, {"q": "org/nothing"}).content.decode()
    client.post(reverse("admin:models_registry_modelversion_cancel", args=[row.pk]))
    row.refresh_from_db()
    assert row.state == VersionState.FAILED
    client.post(reverse("admin:models_registry_hubtoken_add"), {"name": "t", "token": "hf_goodtoken"})
    listed = client.get(reverse("admin:models_registry_hubtoken_changelist")).content.decode()
    assert "hf_goodtoken" not in listed
    client.post(reverse("admin:models_registry_hubtoken_forget", args=[HubToken.objects.get().pk]))
    assert not HubToken.objects.exists()


def test_the_commands_start_and_check(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("download_model", "org/tiny", name="tiny", no_wait=True)
    assert "tiny:1: hf://org/tiny@" in capsys.readouterr().out
    row = ModelVersion.objects.get()
    work(row)
    call_command("verify_store")
    assert "are as they should be" in capsys.readouterr().out
    blob = services.store().blob_path(row.manifest["files"][0]["sha256"] if row.manifest else _first(row))
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    with pytest.raises(CommandError, match="1 file is damaged"):
        call_command("verify_store")
    with pytest.raises(CommandError, match="no org/nothing"):
        call_command("download_model", "org/nothing")


def _first(row: ModelVersion) -> str:
    row.refresh_from_db()
    return str(row.manifest["files"][0]["sha256"])
