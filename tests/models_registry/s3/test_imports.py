"""Imports from a bucket of a real S3 server that checks signatures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
from pytest_django import Settings

from models_registry import services
from models_registry.errors import BadSource, SourceGone, SourceRefused, SourceUnreachable
from models_registry.models import ImportJob, ModelVersion, VersionState
from models_registry.s3.services import start_s3_import
from tests.models_registry.factories import NOW, gguf_bytes
from tests.models_registry.workers import work
from tests.ports import free_port
from tests.s3_server import S3Server, serving_s3

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("s3")]
WEIGHTS = gguf_bytes() + os.urandom(2_000_000)
ODD = "models/tiny/sub folder/ä+b=c&d~e.txt"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with serving_s3() as server:
        server.bucket("open", {"models/tiny/tiny.gguf": WEIGHTS, "models/tiny-2/other.gguf": b"x"})
        server.bucket("models", {"models/tiny/tiny.gguf": WEIGHTS, ODD: b"odd", "models/tiny/folder/": b""})
        server.put("models", {f"many/{number:04}.txt": b"%d" % number for number in range(1005)})
        server.guard()
        yield server


@pytest.fixture(autouse=True)
def _loopback(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.FETCH_FROM_LOOPBACK = True
    monkeypatch.setattr(services, "_enqueue", lambda row: None)


def start(s3: S3Server, address: str = "s3://models/models/tiny", **options: Any) -> ModelVersion:
    keys = {"access_key": s3.access_key, "secret_key": s3.secret_key}
    return start_s3_import(address, **{"endpoint": s3.url, "now": NOW, **keys, **options})


def test_what_lies_under_a_prefix_comes_and_keys_are_nowhere_to_be_read(s3: S3Server) -> None:
    row = start(s3)
    assert (str(row), row.source) == ("tiny:1", "s3://models/models/tiny")
    assert s3.secret_key not in str(ImportJob.objects.values())
    assert s3.access_key not in str(ImportJob.objects.values())
    assert work(row) == VersionState.READY, row.error
    found = {file["path"]: file["sha256"] for file in row.manifest["files"]}
    assert found == {
        "tiny.gguf": hashlib.sha256(WEIGHTS).hexdigest(),
        ODD.removeprefix("models/tiny/"): hashlib.sha256(b"odd").hexdigest(),
    }
    assert services.verify_version(row) == []


def test_a_prefix_that_is_one_object_is_that_one(s3: S3Server) -> None:
    row = start(s3, "s3://models/models/tiny/tiny.gguf", name="one")
    assert work(row) == VersionState.READY
    assert [file["path"] for file in row.manifest["files"]] == ["tiny.gguf"]


def test_lists_of_many_pages_and_patterns(s3: S3Server) -> None:
    assert len(start(s3, "s3://models/many/").job.remote["objects"]) == 1005
    row = start(s3, patterns=["*.gguf"], name="some")
    assert [path for _, path, *_ in row.job.remote["objects"]] == ["tiny.gguf"]
    with pytest.raises(BadSource, match="matches"):
        start(s3, patterns=["*.onnx"])


def test_more_objects_than_are_taken_are_refused_before_anything_is_fetched(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models_registry.s3.client.MOST_FILES", 1000)
    with pytest.raises(BadSource, match="more than 1000 objects"):
        start(s3, "s3://models/many")
    assert not ModelVersion.objects.exists()


def test_wrong_keys_no_keys_and_wrong_names_are_said(s3: S3Server) -> None:
    with pytest.raises(SourceRefused, match="SignatureDoesNotMatch"):
        start(s3, secret_key="wrong")
    with pytest.raises(SourceRefused, match="InvalidAccessKeyId"):
        start(s3, access_key="AKIAWRONG")
    with pytest.raises(BadSource, match="two parts"):
        start(s3, secret_key="")
    with pytest.raises((SourceGone, SourceRefused)):
        start(s3, "s3://nothing/x")
    with pytest.raises(SourceGone):
        start(s3, "s3://models/nothing")
    with pytest.raises(SourceUnreachable):
        start(s3, endpoint=f"http://127.0.0.1:{free_port()}")
    assert not ModelVersion.objects.exists()


def test_an_object_that_becomes_another_is_not_taken(s3: S3Server) -> None:
    s3.put("models", {"changing/tiny.gguf": WEIGHTS})
    row = start(s3, "s3://models/changing")
    s3.put("models", {"changing/tiny.gguf": WEIGHTS[:-1] + b"!"})
    assert work(row) == VersionState.FAILED
    assert "changed while it was fetched" in row.error


def test_this_machine_is_refused_unless_it_is_allowed(s3: S3Server, settings: Settings) -> None:
    settings.FETCH_FROM_LOOPBACK = False
    with pytest.raises(SourceRefused):
        start(s3)
    with pytest.raises(SourceRefused):
        start(s3, endpoint=s3.url.replace("127.0.0.1", "localhost"))
