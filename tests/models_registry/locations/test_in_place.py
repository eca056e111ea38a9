"""Folders on shared storage that become versions without a copy."""

import os
import shutil
from pathlib import Path

import pytest

from models_registry import removal
from models_registry import services as models
from models_registry.errors import BadSource, LastCopy, LocationUnreachable
from models_registry.location_models import InPlaceFile, StorageLocation, VersionCopy
from models_registry.locations import copies, find, in_place, jobs, places, services
from models_registry.models import ImportJob, ModelAlias, ModelVersion
from tests.models_registry.factories import NOW, files_below, make_version, write_gguf, write_safetensors

pytestmark = pytest.mark.django_db


@pytest.fixture
def nfs(tmp_path, add) -> StorageLocation:
    write_safetensors(tmp_path / "nfs" / "llama", shards=2)
    return add("nfs", kind="shared", server_path="/mnt/models")


def register(nfs: StorageLocation, folder: str = "llama", name: str = "tiny") -> ModelVersion:
    row = models.start_import(name, nfs.root / folder, location=nfs, in_place=True, now=NOW)
    models.finish_import(row.pk, NOW)
    row.refresh_from_db()
    return row


def copy_of(version: ModelVersion) -> VersionCopy:
    return copies.copies_of(version).get(in_place=True)


def test_a_folder_becomes_a_version_and_nothing_is_copied_or_written(tmp_path, model_store, nfs):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "nfs").rglob("*")}
    version = register(nfs)
    assert (version.state, version.architecture, version.error) == ("ready", "LlamaForCausalLM", "")
    assert len(version.manifest["files"]) == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "nfs").rglob("*")} == before
    assert files_below(model_store) == set()
    assert find.shared_dir(version) == "/mnt/models/llama"
    assert models.verify_version(version) == []
    sha256 = version.manifest["files"][0]["sha256"]
    assert find.find_blob(sha256) == nfs.root / "llama" / version.manifest["files"][0]["path"]


def test_the_newest_in_place_is_the_latest_at_once(tmp_path, nfs):
    register(nfs)
    write_safetensors(tmp_path / "nfs" / "better", shards=3)
    assert ModelAlias.objects.get(model__name="tiny", name="latest").version.version == "1"
    newest = register(nfs, "better")
    assert ModelAlias.objects.get(model__name="tiny", name="latest").version == newest


def test_the_same_files_as_of_a_copied_version_have_the_same_digest(tmp_path, nfs):
    assert register(nfs).digest == make_version(tmp_path / "nfs" / "llama", name="copied").digest


def test_one_file_of_a_folder_is_a_version_too(tmp_path, nfs):
    write_gguf(tmp_path / "nfs" / "gguf", name="a.gguf")
    write_gguf(tmp_path / "nfs" / "gguf", name="b.gguf")
    version = register(nfs, "gguf/a.gguf")
    assert [file["path"] for file in version.manifest["files"]] == ["a.gguf"]
    assert find.shared_dir(version) == "/mnt/models/gguf"


def test_only_a_folder_on_shared_storage_is_registered(tmp_path, nfs, add):
    write_safetensors(tmp_path / "local")
    (tmp_path / "nfs" / "out").symlink_to(tmp_path / "local")
    for location, path in (
        (None, tmp_path / "local"),
        (add("big"), tmp_path / "local"),
        (nfs, tmp_path / "local"),
        (nfs, tmp_path / "nfs"),
        (nfs, tmp_path / "nfs" / "out"),
        (nfs, tmp_path / "nfs" / "nothing"),
    ):
        with pytest.raises(BadSource):
            models.start_import("bad", path, location=location, in_place=True, now=NOW)
    assert not ModelVersion.objects.exists()


def test_a_damaged_file_is_no_version_and_leaves_no_copy(tmp_path, nfs):
    (tmp_path / "nfs" / "bad").mkdir()
    (tmp_path / "nfs" / "bad" / "x.gguf").write_bytes(b"GGUF")
    version = register(nfs, "bad")
    assert (version.state, VersionCopy.objects.count(), InPlaceFile.objects.count()) == ("failed", 0, 0)


def test_a_killed_registration_goes_on_with_the_next_file(tmp_path, nfs, monkeypatch):
    row = models.start_import("tiny", nfs.root / "llama", location=nfs, in_place=True, now=NOW)
    hashed = []
    original = in_place._hash

    def hash_one(file, note):
        if len(hashed) == 1:
            raise SystemExit  # killed
        hashed.append(file.path)
        return original(file, note)

    monkeypatch.setattr(in_place, "_hash", hash_one)
    with pytest.raises(SystemExit):
        models.finish_import(row.pk, NOW)
    assert InPlaceFile.objects.count() == 1
    monkeypatch.setattr(in_place, "_hash", lambda file, note: hashed.append(file.path) or original(file, note))
    assert models.heal_imports(NOW) == 1
    row.refresh_from_db()
    assert row.state == "ready"
    assert len(hashed) == len(set(hashed)) == 3


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, nfs, monkeypatch):
    path = tmp_path / "nfs" / "llama" / "config.json"

    def grow(version_id):
        return lambda share: path.write_text(path.read_text() + " ")

    monkeypatch.setattr(models, "_row_progress", grow)
    version = register(nfs)
    assert "changed while it was read" in version.error
    assert not ImportJob.objects.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.write_text("{}"), "bytes instead of"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"2", b"3")), "was changed at"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_cheap_look_sees_what_was_changed(tmp_path, nfs, change, told, caplog):
    version = register(nfs)
    path = tmp_path / "nfs" / "llama" / "config.json"
    os.utime(path, ns=(0, 0))
    services.look_at(nfs, NOW)
    assert copy_of(version).state == "damaged"
    finish = jobs.start_verify(copy_of(version), now=NOW)
    jobs.finish_job(finish.pk, NOW)
    assert copy_of(version).state == "whole"  # only touched: the bytes are the same
    sha256 = next(file["sha256"] for file in version.manifest["files"] if file["path"] == "config.json")
    change(path)
    find.forget_places()
    assert find.find_blob(sha256) is None  # at once, before anybody looks
    services.look_at(nfs, NOW)
    copy = copy_of(version)
    assert copy.state in ("damaged", "partial")
    assert told in copy.problem
    assert find.shared_dir(version) == ""
    jobs.finish_job(jobs.start_verify(copy, now=NOW).pk, NOW)
    assert copy_of(version).state in ("damaged", "partial")


def test_the_damage_of_a_folder_is_told_to_people(tmp_path, nfs):
    from deployments.models import Event

    register(nfs)
    (tmp_path / "nfs" / "llama" / "config.json").unlink()
    services.look_at(nfs, NOW)
    event = Event.objects.get(kind="store.damaged")
    assert event.severity == "error"
    assert "config.json is missing" in event.message
    services.look_at(nfs, NOW)
    assert Event.objects.count() == 1  # once


def test_a_folder_that_is_not_mounted_is_not_called_damaged(tmp_path, nfs):
    version = register(nfs)
    (tmp_path / "nfs").rename(tmp_path / "away")
    services.look_at(nfs, NOW)
    assert copy_of(version).state == "whole"
    with pytest.raises(LocationUnreachable):
        jobs.start_verify(copy_of(version), now=NOW)
    assert find.shared_dir(version) == "/mnt/models/llama"  # servers may see it all the same


def test_a_copy_in_place_is_forgotten_but_never_deleted(tmp_path, nfs):
    version = register(nfs)
    with pytest.raises(LastCopy):
        copies.delete_copy(copy_of(version))
    job = jobs.start_copy(version, places.builtin(), now=NOW)
    assert jobs.finish_job(job.pk, NOW) == "done"
    before = files_below(tmp_path / "nfs")
    copies.delete_copy(copy_of(version))
    removal.clean_store()
    assert files_below(tmp_path / "nfs") == before
    assert models.verify_version(version) == []
    removal.delete_version(version)
    assert files_below(tmp_path / "nfs") == before


def test_a_read_only_share_is_used_in_place(tmp_path):
    write_safetensors(tmp_path / "ro" / "llama")
    (tmp_path / "ro" / places.MARKER).write_text("nfs\n")
    ro = services.add_location("ro", str(tmp_path / "ro"), kind="shared", read_only=True, now=NOW)
    before = {path: path.stat().st_mtime_ns for path in Path(tmp_path / "ro").rglob("*")}
    version = register(ro)
    jobs.finish_job(jobs.start_verify(copy_of(version), now=NOW).pk, NOW)
    assert {path: path.stat().st_mtime_ns for path in Path(tmp_path / "ro").rglob("*")} == before
    assert find.shared_dir(version) == f"{tmp_path}/ro/llama"
    shutil.rmtree(tmp_path / "ro" / "llama")
    services.look_at(ro, NOW)
    assert copy_of(version).state == "missing"
