"""Several imports at once: who is taken up first, who gets the line, and what a schedule or a jumping clock does."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.utils import timezone
from pytest_django import Settings

from models_registry import removal, services
from models_registry.download import transfer
from models_registry.errors import BadSource, NotReady
from models_registry.fetching import services as fetching
from models_registry.fetching.policy import set_policy
from models_registry.hub.services import start_hub_import
from models_registry.models import ImportJob, ModelVersion, VersionState
from models_registry.scan import MOST_FILES
from tests.fakes.hub import FakeHub, HubFile, serving_hub
from tests.models_registry.factories import NOW, gguf_bytes, write_gguf
from tests.models_registry.workers import Worker, fetched, work
from tests.waiting import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def hub(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(services, "_enqueue", lambda row: None)
    monkeypatch.setattr(transfer, "PIECE_BYTES", 200_000)
    settings.HUB_TOKEN = ""
    made = FakeHub()
    for name in ("a", "b", "c"):
        made.repo(f"org/{name}", {f"{name}.gguf": HubFile(gguf_bytes() + os.urandom(3_000_000), lfs=True)})
    with serving_hub(made):
        settings.HUB_ENDPOINT = made.url
        yield made


def start(name: str, *, limit: int | None = None, minute: int = 0) -> ModelVersion:
    now = NOW + dt.timedelta(minutes=minute)
    return start_hub_import(f"org/{name}", name=name, limit_bytes_per_second=limit, now=now)


def states() -> dict[str, str]:
    return dict(ModelVersion.objects.values_list("model__name", "state"))


def test_the_first_is_taken_up_whichever_task_comes_and_none_is_forgotten(hub: FakeHub) -> None:
    rows = [start(name, minute=minute) for minute, name in enumerate("abc")]
    fetching.prioritize_import(rows[2], 10)
    done = []
    for row in rows:  # three tasks, in the order in which they were asked for
        assert services.work_on(row.pk, timezone.now()) == VersionState.READY
        done.append(next(name for name, state in states().items() if state == "ready" and name not in done))
    assert done == ["c", "a", "b"]
    assert services.work_on(rows[0].pk, timezone.now()) == VersionState.READY  # a task that is delivered once more
    with pytest.raises(NotReady):
        fetching.prioritize_import(rows[0], 1)


def test_a_task_whose_import_is_paused_or_gone_does_no_harm(hub: FakeHub) -> None:
    paused, other = start("a"), start("b")
    fetching.pause_import(paused)
    assert services.work_on(paused.pk, timezone.now()) in (VersionState.READY, VersionState.IMPORTING)
    assert states() == {"a": "importing", "b": "ready"}
    fetching.cancel_import(paused)
    assert services.work_on(paused.pk, timezone.now()) == VersionState.FAILED
    removal.delete_version(ModelVersion.objects.get(pk=other.pk))
    assert services.work_on(other.pk, timezone.now()) is None


def test_a_worker_that_lets_go_is_free_for_the_next(hub: FakeHub) -> None:
    slow, other = start("a", limit=200_000), start("b", minute=1)
    worker = Worker(slow)
    worker.start()
    wait_for(lambda: fetched(slow) > 50_000, what="progress")
    fetching.pause_import(slow)
    worker.join(30)
    assert worker.state == VersionState.READY  # of the other one: it went on with what waited
    assert states() == {"a": "importing", "b": "ready"}
    job = ImportJob.objects.get(pk=slow.pk)
    assert (job.started_at, job.attempts) == (None, 0)
    assert services.heal_imports(timezone.now() + dt.timedelta(days=1)) == 0
    fetching.limit_import(slow, None)
    fetching.pause_import(slow, paused=False)
    fetching.pause_import(slow, paused=False)  # twice is once
    assert services.heal_imports(timezone.now() + dt.timedelta(hours=1)) == 1  # its task was lost
    assert work(slow) == VersionState.READY
    assert other.pk


def test_who_comes_first_has_most_of_the_line(hub: FakeHub) -> None:
    set_policy("1 MB/s")
    first, second = start("a"), start("b")
    fetching.prioritize_import(first, 1)
    workers = [Worker(first), Worker(second)]
    for worker in workers:
        worker.start()
    wait_for(lambda: states()["a"] == "ready", within_s=60, what="the first")
    assert fetched(second) < 1_500_000
    set_policy("")
    for worker in workers:
        worker.join(60)
    assert states() == {"a": "ready", "b": "ready"}


def test_a_schedule_holds_at_once_and_for_all_together(hub: FakeHub) -> None:
    set_policy("00:00-24:00 100 KB/s")
    row = start("a")
    worker = Worker(row)
    worker.start()
    wait_for(lambda: fetched(row) > 0, what="progress")
    assert fetched(row) < 1_500_000
    set_policy("unlimited")
    worker.join(60)
    assert worker.state == VersionState.READY


def test_a_clock_that_jumps_hurts_no_fetch(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock goes forth and back by a month all the time, while leftovers are cleaned and imports expire."""
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (30 * 86_400 if next(jumps) % 2 else -30 * 86_400))
    row = start("a", limit=800_000)
    worker = Worker(row)
    worker.start()
    wait_for(lambda: fetched(row) > 0, what="progress")
    ahead = timezone.now() + dt.timedelta(days=30)
    while states()["a"] != "ready" and worker.is_alive():
        services.store().clean_leftovers()
        assert services.expire_imports(ahead) == 0 or not worker.is_alive()
        services.heal_imports(ahead)
        worker.join(0.2)
    worker.join(30)
    assert states() == {"a": "ready"}
    row.refresh_from_db()
    assert services.verify_version(row) == []


def test_a_repository_of_a_hundred_thousand_files_is_refused_before_anything_is_fetched(hub: FakeHub) -> None:
    hub.repo("org/many", {f"f{number}.json": b"" for number in range(MOST_FILES + 1)})
    with pytest.raises(BadSource, match=f"{MOST_FILES} are the most"):
        start_hub_import("org/many", now=NOW)
    assert not ModelVersion.objects.exists()
    assert not hub.sent


def test_imports_of_this_machine_wait_their_turn_too(hub: FakeHub, tmp_path: Path) -> None:
    local = services.start_import("local", write_gguf(tmp_path), now=NOW)
    remote = start("a", minute=1)
    fetching.prioritize_import(remote, 5)
    assert services.work_on(local.pk, timezone.now()) == VersionState.READY
    assert states() == {"local": "importing", "a": "ready"}
    assert services.work_on(remote.pk, timezone.now()) == VersionState.READY
    assert states() == {"local": "ready", "a": "ready"}
