"""Imports from ModelScope: the files of the sensible choice, fixed by their hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from models_registry import services
from models_registry.errors import BadSource, SourceGone, SourceUnreachable
from models_registry.models import ImportJob, VersionState
from models_registry.modelscope.services import start_modelscope_import
from models_registry.scan import MOST_FILES
from tests.fakes.modelscope import FakeModelScope, serving_modelscope
from tests.models_registry.factories import NOW, gguf_bytes
from tests.models_registry.workers import work

pytestmark = pytest.mark.django_db(transaction=True)
WEIGHTS = gguf_bytes() + os.urandom(2_000_000)
FILES = {"tiny-Q4_K_M.gguf": WEIGHTS, "tiny-Q8_0.gguf": b"other", "sub/config.json": b"{}", "README.md": b"# Tiny"}


@pytest.fixture
def scope(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModelScope]:
    monkeypatch.setattr(services, "_enqueue", lambda row: None)
    repos = {"org/tiny": dict(FILES), "org/private": dict(FILES)}
    with serving_modelscope(FakeModelScope(repos, private={"org/private": "ms-good-token"})) as fake:
        settings.MODELSCOPE_ENDPOINT, settings.MODELSCOPE_TOKEN = fake.url, ""
        yield fake


def test_the_sensible_files_come_and_are_a_version_like_any_other(scope: FakeModelScope) -> None:
    row = start_modelscope_import("ms://org/tiny@v1", now=NOW)
    assert (str(row), row.source) == ("org/tiny:1", "ms://org/tiny@v1")
    assert work(row) == VersionState.READY, row.error
    assert [file["path"] for file in row.manifest["files"]] == ["README.md", "sub/config.json", "tiny-Q4_K_M.gguf"]
    assert row.manifest["files"][-1]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert services.verify_version(row) == []


def test_a_branch_that_moves_meanwhile_does_not_matter(scope: FakeModelScope) -> None:
    row = start_modelscope_import("org/tiny", patterns=["README.md", "*Q4*"], now=NOW)
    scope.change("org/tiny", "README.md", b"# Tiny, better")
    assert work(row) == VersionState.READY, row.error


def test_files_without_hashes_are_hashed_on_the_way(scope: FakeModelScope) -> None:
    scope.without_hashes = True
    row = start_modelscope_import("org/tiny", patterns=["*Q4*"], name="mine", now=NOW)
    assert work(row) == VersionState.READY, row.error
    assert row.manifest["files"][0]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()


def test_a_token_opens_what_is_private_and_goes_nowhere_else(scope: FakeModelScope) -> None:
    with pytest.raises(SourceGone):
        start_modelscope_import("org/private", now=NOW)
    row = start_modelscope_import("org/private", token="ms-good-token", now=NOW)
    assert "ms-good-token" not in str(ImportJob.objects.values())
    assert work(row) == VersionState.READY, row.error
    assert all(not authorization for path, authorization in scope.asked if path.startswith("/storage/"))


@pytest.mark.parametrize("address", ["ms://tiny", "ms://../x", "ms://org/na me", "ms://org/tiny@a b", "ms://a/b/c"])
def test_what_is_no_repository_is_said(scope: FakeModelScope, address: str) -> None:
    with pytest.raises(BadSource):
        start_modelscope_import(address, name="x", now=NOW)
    assert scope.asked == []


def test_lists_that_are_unsafe_too_long_or_not_there_are_refused(scope: FakeModelScope, settings: Settings) -> None:
    with pytest.raises(SourceGone, match="nothing"):
        start_modelscope_import("org/nothing", now=NOW)
    scope.more_files = [{"Path": "../evil", "Type": "blob", "Size": 1, "Sha256": "ab" * 32}]
    with pytest.raises(BadSource, match="not safe"):
        start_modelscope_import("org/tiny", now=NOW)
    scope.more_files = [{"Path": f"f{number}", "Type": "blob", "Size": 1} for number in range(100_000)]
    with pytest.raises(BadSource, match=f"{MOST_FILES} are the most"):
        start_modelscope_import("org/tiny", now=NOW)
    settings.MODELSCOPE_ENDPOINT = "http://127.0.0.1:9"
    with pytest.raises(SourceUnreachable):
        start_modelscope_import("org/tiny", now=NOW)
