"""Imports from URLs: from a list to a READY version, and what a server may do meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings

from config.home import SOURCE_DIR
from models_registry import services
from models_registry.errors import BadSource, SourceRefused
from models_registry.fetching import services as fetching
from models_registry.models import ImportJob, ModelVersion, VersionState
from models_registry.urls.services import start_url_import
from tests.fakes.hub import FakeHub, Fault, HubFile, serving_hub
from tests.master import test_database_url
from tests.models_registry.factories import NOW, gguf_bytes
from tests.models_registry.workers import Worker, fetched, noted, work
from tests.waiting import wait_for

pytestmark = pytest.mark.django_db(transaction=True)
WEIGHTS = HubFile(gguf_bytes() + os.urandom(3_000_000), lfs=True)
CONFIG = HubFile(b'{"model_type": "llama"}')


@pytest.fixture
def server(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Any web server with ranges, ETags and redirects: that a Hub is one too is good enough."""
    monkeypatch.setattr(services, "_enqueue", lambda row: None)
    settings.FETCH_FROM_LOOPBACK = True
    made = FakeHub(tokens={"hf_goodtoken": {"org/private"}})
    made.repo("org/tiny", {"tiny.gguf": WEIGHTS, "config.json": CONFIG})
    made.repo("org/private", {"tiny.gguf": WEIGHTS}, private=True)
    with serving_hub(made):
        yield made


def url(server: FakeHub, path: str = "tiny.gguf", repo: str = "org/tiny") -> str:
    return f"{server.url}/{repo}/resolve/main/{path}"


def start(urls: Any, **options: Any) -> ModelVersion:
    return start_url_import("tiny", urls, now=NOW, **options)


def test_files_come_hashed_or_not_and_are_a_version_like_any_other(server: FakeHub) -> None:
    row = start(f"{url(server)} sha256={WEIGHTS.sha256}\n{url(server, 'config.json')}?download=true path=sub/c.json")
    assert row.source == f"{url(server)} and 1 more"
    assert work(row) == VersionState.READY
    assert {file["path"]: file["sha256"] for file in row.manifest["files"]} == {
        "sub/c.json": CONFIG.sha256,
        "tiny.gguf": WEIGHTS.sha256,
    }
    assert row.architecture == "llama"
    assert services.verify_version(row) == []


def test_a_hash_that_is_wrong_fails_with_both_and_leaves_nothing(server: FakeHub) -> None:
    row = start(f"{url(server)} sha256={'ab' * 32}")
    assert work(row) == VersionState.FAILED
    assert "ab" * 32 in row.error
    assert WEIGHTS.sha256 in row.error
    assert not list(services.store().root.glob("blobs/sha256/*/*"))


def test_what_is_in_the_store_is_not_even_asked_for(server: FakeHub) -> None:
    assert work(start(url(server))) == VersionState.READY
    asked = len(server.asked)
    row = start(f"{url(server)} sha256={WEIGHTS.sha256} path=other.gguf")
    assert work(row) == VersionState.READY
    assert len(server.asked) == asked


def test_a_file_without_a_hash_must_not_become_another_meanwhile(server: FakeHub) -> None:
    row = start(url(server), limit_bytes_per_second=300_000)
    worker = Worker(row)
    worker.start()
    wait_for(lambda: fetched(row) > 100_000, what="progress")
    fetching.pause_import(row)
    worker.join(30)
    assert worker.state == VersionState.IMPORTING
    server.repos["org/tiny"].change({"tiny.gguf": HubFile(WEIGHTS.size * b"x", lfs=True)})
    fetching.limit_import(row, None)
    fetching.pause_import(row, paused=False)
    assert work(row) == VersionState.FAILED
    assert "changed while it was fetched" in row.error


def test_a_file_that_is_gone_refused_or_of_no_told_size_is_said(server: FakeHub) -> None:
    for path, repo, words in (
        ("nothing", "org/tiny", "is not there"),
        ("tiny.gguf", "org/private", "refuses|not there"),
    ):
        row = start(url(server, path, repo), version=None)
        assert work(row) == VersionState.FAILED
        assert any(word in row.error for word in words.split("|"))
    server.gzip_text = True
    server.faults = [Fault("config.json", status=500, times=2, at="hub")]
    row = start(url(server, "config.json"))
    assert work(row) == VersionState.READY  # after two tries in vain


def test_a_token_goes_to_its_host_only_and_is_nowhere_to_be_read(server: FakeHub) -> None:
    row = start(url(server, repo="org/private"), bearer_token="hf_goodtoken", headers={"X-Team": "ours"})
    assert "goodtoken" not in str(ImportJob.objects.values())
    assert "sig=1" not in str(ImportJob.objects.values())
    assert work(row) == VersionState.READY
    assert server.leaks == []
    with pytest.raises(BadSource, match="several hosts"):
        start([url(server), "https://example.org/x"], bearer_token="hf_goodtoken")


def test_a_signature_in_an_address_is_sealed(server: FakeHub) -> None:
    row = start(f"{url(server)}?X-Signature=verysecret")
    assert "verysecret" not in f"{list(ImportJob.objects.values())} {row.source}"
    assert work(row) == VersionState.READY


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "[fe80::1]", "0.0.0.0"])
def test_this_machine_and_metadata_are_refused_at_once(server: FakeHub, settings: Settings, host: str) -> None:
    settings.FETCH_FROM_LOOPBACK = False
    with pytest.raises(SourceRefused):
        start(f"http://{host}/x")


def test_a_name_of_this_machine_is_refused_when_it_is_connected_to(server: FakeHub, settings: Settings) -> None:
    settings.FETCH_FROM_LOOPBACK = False
    row = start(f"http://localhost:{server.port}/org/tiny/resolve/main/tiny.gguf")
    assert work(row) == VersionState.FAILED
    assert "never fetched from" in row.error
    assert server.asked == []


_WORKER = """
import sys
import django
django.setup()
from pathlib import Path
from django.conf import settings
from django.utils import timezone
from models_registry import services
from models_registry.download import transfer
settings.MODEL_STORE_DIR, settings.FETCH_FROM_LOOPBACK = Path(sys.argv[1]), True
transfer._CHECKPOINT_S = 0.1
services.work_on(int(sys.argv[2]), timezone.now())
"""


def test_a_worker_that_is_killed_is_followed_by_one_that_goes_on(server: FakeHub, settings: Settings) -> None:
    row = start(url(server), limit_bytes_per_second=800_000)
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings.test", "DATABASE_URL": test_database_url()}
    for least in (400_000, 900_000):
        command = [sys.executable, "-c", _WORKER, str(settings.MODEL_STORE_DIR), str(row.pk)]
        process = subprocess.Popen(command, cwd=SOURCE_DIR, env=environment)
        wait_for(lambda least=least: noted() > least, within_s=60, what="bytes that outlast a kill")
        process.send_signal(signal.SIGKILL)
        process.wait()
    ImportJob.objects.update(limit_bytes_per_second=None)
    assert services.heal_imports(timezone.now()) == 1
    asked = len(server.asked)
    assert work(row) == VersionState.READY, row.error
    assert all(one.range for one in server.asked[asked:] if one.host == "cdn")  # never again from the start
    assert services.verify_version(row) == []
