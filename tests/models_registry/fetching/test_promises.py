"""What a fetch promises of disks and of what is there already, whatever people do meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from models_registry import removal, services
from models_registry.download.remote import Remote
from models_registry.download.transfer import Wanted
from models_registry.errors import LocationReadOnly
from models_registry.fetching import services as fetching
from models_registry.fetching import work as fetch_work
from models_registry.location_models import StorageLocation
from models_registry.locations import find
from models_registry.locations import services as locations
from models_registry.models import ImportJob, ModelVersion, VersionState
from models_registry.urls.services import start_url_import
from tests.fakes.hub import FakeHub, HubFile, serving_hub
from tests.models_registry.factories import NOW, files_below, gguf_bytes
from tests.models_registry.workers import Worker, fetched, work
from tests.waiting import wait_for

pytestmark = pytest.mark.django_db(transaction=True)
WEIGHTS = HubFile(gguf_bytes() + os.urandom(3_000_000), lfs=True)
CONFIG = HubFile(b'{"model_type": "llama"}')


@pytest.fixture
def server(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(services, "_enqueue", lambda row: None)
    settings.FETCH_FROM_LOOPBACK = True
    find.forget_places()
    made = FakeHub()
    made.repo("org/tiny", {"tiny.gguf": WEIGHTS, "config.json": CONFIG})
    with serving_hub(made):
        yield made


def start(server: FakeHub, name: str = "tiny", paths: tuple[str, ...] = ("tiny.gguf",), **options) -> ModelVersion:
    urls = [f"{server.url}/org/tiny/resolve/main/{path}" for path in paths]
    return start_url_import(name, urls, **{"now": NOW, **options})


def reserved() -> int:
    downloads = services.store().downloads
    return sum(path.stat().st_blocks * 512 for path in downloads.glob("*")) if downloads.exists() else 0


def begun(server: FakeHub) -> ModelVersion:
    """An import that was paused when some of it had come."""
    row = start(server, limit_bytes_per_second=300_000)
    worker = Worker(row)
    worker.start()
    wait_for(lambda: fetched(row) > 100_000, what="progress")
    fetching.pause_import(row)
    worker.join(30)
    assert worker.state == VersionState.IMPORTING
    return row


def test_a_paused_import_keeps_its_room_and_a_cancelled_one_only_what_came(server: FakeHub) -> None:
    row = begun(server)
    there = fetched(row)
    assert reserved() >= WEIGHTS.size
    fetching.cancel_import(row)
    assert reserved() < there + 500_000
    again = start(server)
    asked = len(server.asked)
    assert work(again) == VersionState.READY, again.error
    assert all(one.range for one in server.asked[asked:] if one.host == "cdn")  # never again from the start
    assert services.verify_version(again) == []


def test_an_import_that_failed_gives_its_room_back(server: FakeHub) -> None:
    urls = [f"{server.url}/org/tiny/resolve/main/tiny.gguf"]
    urls += [f"{server.url}/org/tiny/resolve/main/config.json sha256={'ab' * 32}"]
    row = start_url_import("tiny", urls, limit_bytes_per_second=300_000, now=NOW)
    assert work(row) == VersionState.FAILED
    assert reserved() < 500_000


def test_nothing_is_fetched_into_a_read_only_location(server: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    big = locations.add_location("big", str(tmp_path / "big"), now=NOW)
    row = start(server, location=big)
    locations.change_location(StorageLocation.objects.get(pk=big.pk), read_only=True)
    before = files_below(tmp_path / "big")
    with pytest.raises(LocationReadOnly):
        start(server, "other", location=StorageLocation.objects.get(pk=big.pk))
    assert work(row) == VersionState.FAILED
    assert "read-only" in row.error
    assert files_below(tmp_path / "big") == before


def test_more_than_a_quota_is_refused_before_the_first_byte(server: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    small = locations.add_location("small", str(tmp_path / "small"), quota_bytes=WEIGHTS.size - 1, now=NOW)
    row = start(server, location=small)
    assert work(row) == VersionState.FAILED
    assert "do not go into small" in row.error
    assert not [one for one in server.asked if one.host == "cdn" and one.range != "bytes=0-0"]


def test_who_pauses_and_at_once_goes_on_has_not_cancelled(server: FakeHub) -> None:
    row = start(server)
    watch = fetch_work._Watch(row, ImportJob.objects.get(pk=row.pk), have=0)
    watch._control.cancelled = True  # it saw the pause, which is over before its connections have ended
    wanted = Wanted(services.store().downloads / "tiny", WEIGHTS.size, Remote(f"{server.url}/org/tiny"))
    with pytest.raises(fetch_work.Parked):
        watch.fetch([wanted], loopback=True)


def test_a_file_in_the_store_of_another_size_is_fetched_again(server: FakeHub) -> None:
    first = start(server)
    assert work(first) == VersionState.READY
    blob = services.store().blob_path(WEIGHTS.sha256)
    blob.chmod(0o644)
    os.truncate(blob, 1000)
    url = f"{server.url}/org/tiny/resolve/main/tiny.gguf sha256={WEIGHTS.sha256}"
    again = start_url_import("again", url, now=NOW)
    assert work(again) == VersionState.READY, again.error
    assert services.verify_version(again) == []


def test_a_file_that_goes_from_the_store_meanwhile_is_fetched(server: FakeHub) -> None:
    first = start(server)
    assert work(first) == VersionState.READY
    lines = [f"{server.url}/org/tiny/resolve/main/tiny.gguf sha256={WEIGHTS.sha256}"]
    lines += [f"{server.url}/org/tiny/resolve/main/config.json"]
    second = start_url_import("second", lines, limit_bytes_per_second=1, now=NOW)
    worker = Worker(second)
    worker.start()
    wait_for(lambda: fetched(second) >= WEIGHTS.size, what="the fetch")
    removal.delete_version(first)
    assert not services.store().blob_path(WEIGHTS.sha256).exists()
    fetching.limit_import(second, None)
    worker.join(60)
    second.refresh_from_db()
    assert second.state == VersionState.READY, second.error
    assert services.verify_version(second) == []
