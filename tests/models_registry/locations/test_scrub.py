"""Copies are read again, and damage is repaired from wherever the bytes can be had."""

import datetime as dt
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from models_registry import services as models
from models_registry.hub import services as hub_services
from models_registry.location_models import JobKind, JobState, StorageJob, StorageLocation, VersionCopy
from models_registry.locations import copies, find, jobs, repair, scrub, services
from models_registry.models import ModelVersion
from tests.fakes.hub import FakeHub, HubFile, serving_hub
from tests.models_registry.factories import NOW, gguf_bytes, make_version, write_safetensors

pytestmark = pytest.mark.django_db
MONTH = dt.timedelta(days=31)


@pytest.fixture
def version(tmp_path) -> ModelVersion:
    return make_version(write_safetensors(tmp_path / "m", shards=2))


@pytest.fixture
def both(version, add) -> StorageLocation:
    """Where the second copy is."""
    big = add("big")
    job = jobs.start_copy(version, big, now=NOW)
    assert jobs.finish_job(job.pk, NOW) == "done"
    return big


def copy_of(version: ModelVersion, location: str = "default") -> VersionCopy:
    return copies.copies_of(version).get(location__name=location)


def blob_of(copy: VersionCopy, path: str = "config.json") -> Path:
    sha256 = next(file["sha256"] for file in copy.version.manifest["files"] if file["path"] == path)
    return copy.location.store_root / "blobs" / "sha256" / sha256[:2] / sha256


def spoil(path: Path) -> None:
    """One bit less, as disks do it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def verify(copy: VersionCopy) -> VersionCopy:
    job = jobs.start_verify(copy, now=NOW)
    assert jobs.finish_job(job.pk, NOW) == "done", StorageJob.objects.get(pk=job.pk).error
    copy.refresh_from_db()
    return copy


def test_a_copy_that_is_whole_is_noted_as_verified(version):
    began = timezone.now()
    copy = verify(copy_of(version))
    assert copy.state == "whole"
    assert copy.verified_at >= began


@pytest.mark.parametrize("damage", [spoil, Path.unlink, lambda path: os.truncate(path, 10)])
def test_a_damaged_file_is_mended_from_the_other_copy(version, both, damage):
    copy = copy_of(version)
    with blob_of(copy).open("rb") as reader:  # somebody reads it all the while
        good = reader.read()
        damage(blob_of(copy))
        assert verify(copy).state == "whole"
    assert blob_of(copy).read_bytes() == good
    assert (copy.path / "config.json").samefile(blob_of(copy))
    assert models.verify_version(version) == []
    assert not list(copy.location.store_root.rglob(".mend-*"))
    assert not list((copy.location.store_root / "downloads").glob("*"))


def test_a_lost_checkout_is_made_again(version, both):
    import shutil

    copy = copy_of(version)
    shutil.rmtree(copy.path)
    assert verify(copy).state == "whole"
    assert models.verify_version(version) == []


def test_damage_of_one_file_is_mended_for_every_version_that_has_it(tmp_path, version, both):
    other = make_version(tmp_path / "m", name="other")
    spoil(blob_of(copy_of(version)))
    assert scrub.verify_now(copy_of(other), NOW) != []
    assert scrub.verify_now(copy_of(version), NOW) != []
    assert repair.repair(copy_of(version)) == []
    assert copy_of(other).state == copy_of(version).state == "whole"
    assert models.verify_version(other) == []


def test_what_cannot_be_repaired_is_told_and_not_served(version, model_store):
    from deployments.models import Event
    from monitoring.overview import overview

    copy = copy_of(version)
    spoil(blob_of(copy))
    assert verify(copy).state == "damaged"
    assert copy.problem == "config.json is not what it was"
    assert find.find_blob(blob_of(copy).name) is None
    assert "config.json is not what it was" in Event.objects.get(kind="store.damaged").message
    assert any("tiny:1 in default is damaged" in alert.message for alert in overview(NOW).alerts)
    blob_of(copy).unlink()
    assert verify(copy).state == "partial"


def test_importing_again_mends_what_was_found_damaged(tmp_path, version):
    spoil(blob_of(copy_of(version)))
    assert verify(copy_of(version)).state == "damaged"
    make_version(tmp_path / "m")
    assert copy_of(version).state == "whole"
    assert models.verify_version(version) == []


def test_damage_that_was_found_is_tried_again_when_a_source_comes_back(tmp_path, version, both):
    (tmp_path / "big").rename(tmp_path / "away")
    spoil(blob_of(copy_of(version)))
    assert verify(copy_of(version)).state == "damaged"
    assert repair.repair_all() == 0
    (tmp_path / "away").rename(tmp_path / "big")
    assert repair.repair_all() == 1
    assert copy_of(version).state == "whole"


def test_a_read_only_copy_is_not_repaired_but_serves_the_others(version, both):
    services.change_location(both, read_only=True)
    spoil(blob_of(copy_of(version, "big")))
    before = blob_of(copy_of(version, "big")).read_bytes()
    assert verify(copy_of(version, "big")).state == "damaged"
    assert blob_of(copy_of(version, "big")).read_bytes() == before
    assert find.find_blob(blob_of(copy_of(version)).name) == blob_of(copy_of(version))


def test_a_disk_that_goes_while_it_is_read_is_not_called_damaged(tmp_path, version, both, monkeypatch):
    copy = copy_of(version, "big")
    original = scrub._problem_in_store

    def unplug(copy, store, file, read):
        if (tmp_path / "big").exists():
            (tmp_path / "big").rename(tmp_path / "away")
        return original(copy, store, file, read)

    monkeypatch.setattr(scrub, "_problem_in_store", unplug)
    job = jobs.start_verify(copy, now=NOW)
    assert jobs.finish_job(job.pk, NOW) == "failed"
    job.refresh_from_db()
    copy.refresh_from_db()
    assert "went away" in job.error
    assert copy.state == "whole"


def test_a_scrub_goes_on_after_a_restart(version, monkeypatch):
    job = jobs.start_verify(copy_of(version), now=NOW)
    read = []
    original = scrub.check_file

    def die_after_one(copy, store, file, reader):
        if len(read) == 1:
            raise SystemExit  # killed
        read.append(file.path)
        return original(copy, store, file, reader)

    monkeypatch.setattr(scrub, "check_file", die_after_one)
    with pytest.raises(SystemExit):
        jobs.finish_job(job.pk, NOW)
    monkeypatch.setattr(scrub, "check_file", lambda c, s, file, r: read.append(file.path) or original(c, s, file, r))
    assert jobs.heal_jobs(NOW) == 1
    assert jobs.finish_job(job.pk, NOW) == "done"
    assert len(read) == len(set(read)) == 3


def test_a_cancelled_scrub_ends_while_it_waits_for_its_turn(tmp_path, settings, monkeypatch):
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "weights.bin").write_bytes(os.urandom(5 << 20))
    version = make_version(tmp_path / "slow")
    settings.SCRUB_BYTES_PER_SECOND = 1 << 20
    monkeypatch.setattr(scrub, "_TOLD_EVERY_S", 0.01)
    monkeypatch.setattr(jobs, "_NOTED_EVERY_S", 0.0)
    job = jobs.start_verify(copy_of(version), now=NOW)
    original = StorageJob.objects.filter(pk=job.pk)
    noted = jobs._noter

    def noter(job):
        note = noted(job)

        def cancel_then_note(count):
            if count:
                original.update(state="cancelled")
            note(count)

        return cancel_then_note

    monkeypatch.setattr(jobs, "_noter", noter)
    assert jobs.finish_job(job.pk, NOW) == "cancelled"
    assert not any(thread.name.startswith("scrub") for thread in threading.enumerate())


def test_each_copy_is_read_when_it_was_not_for_a_month_one_at_a_time(version, both, settings):
    VersionCopy.objects.update(verified_at=NOW)
    assert jobs.start_due_scrub(NOW + dt.timedelta(days=29)) is None
    VersionCopy.objects.filter(location=both).update(verified_at=NOW - MONTH)
    settings.SCRUB_EVERY_DAYS = 0
    assert jobs.start_due_scrub(NOW) is None
    settings.SCRUB_EVERY_DAYS = 30
    job = jobs.start_due_scrub(NOW)
    assert (job.kind, job.location) == (JobKind.VERIFY, both)
    assert jobs.start_due_scrub(NOW + 2 * MONTH) is None
    jobs.finish_job(job.pk, NOW)
    assert jobs.start_due_scrub(NOW) is None
    assert jobs.start_due_scrub(NOW + MONTH).location.builtin


def test_a_due_copy_out_of_reach_does_not_hold_up_the_others(tmp_path, version, both):
    VersionCopy.objects.update(verified_at=NOW - 2 * MONTH)
    VersionCopy.objects.filter(location=both).update(verified_at=None, created_at=NOW - 2 * MONTH)
    (tmp_path / "big").rename(tmp_path / "away")
    assert jobs.start_due_scrub(NOW).location.builtin


def test_a_due_copy_whose_reading_breaks_off_waits_a_day_while_others_have_their_turn(version, both, monkeypatch):
    VersionCopy.objects.update(verified_at=NOW - 2 * MONTH)
    VersionCopy.objects.filter(location=both).update(verified_at=None, created_at=NOW - 2 * MONTH)
    job = jobs.start_due_scrub(NOW)
    StorageJob.objects.filter(pk=job.pk).update(state=JobState.FAILED, ended_at=NOW)
    assert job.location == both
    other = jobs.start_due_scrub(NOW + dt.timedelta(minutes=1))
    assert other.location.builtin
    StorageJob.objects.filter(pk=other.pk).update(state=JobState.FAILED, ended_at=NOW)
    assert jobs.start_due_scrub(NOW + dt.timedelta(hours=23)) is None
    assert jobs.start_due_scrub(NOW + dt.timedelta(hours=25)).location == both


def test_the_command_finds_and_repairs(version, both, capsys):
    spoil(blob_of(copy_of(version, "big")))
    with pytest.raises(CommandError, match="1 file is damaged"):
        call_command("verify_store")
    assert "tiny:1 in big: config.json is not what it was" in capsys.readouterr().err
    call_command("verify_store", repair=True)
    assert "1 of 1 file repaired" in capsys.readouterr().out
    call_command("verify_store", location="big")
    assert "default" not in capsys.readouterr().out


def test_the_command_says_what_it_could_not_reach(tmp_path, version, both):
    (tmp_path / "big").rename(tmp_path / "away")
    with pytest.raises(CommandError, match="1 copy could not be reached"):
        call_command("verify_store")


@pytest.fixture
def hub(settings) -> Iterator[FakeHub]:
    made = FakeHub(tokens={"hf_goodtoken": {"org/private"}})
    files = {"tiny-Q4_K_M.gguf": HubFile(gguf_bytes() + os.urandom(1_000_000), lfs=True), "config.json": HubFile(b"{}")}
    made.repo("org/tiny", files)
    made.repo("org/private", files, private=True)
    settings.HUB_TOKEN = ""
    with serving_hub(made):
        settings.HUB_ENDPOINT = made.url
        yield made


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("repo", ["org/tiny", "org/private"])
def test_what_no_other_copy_has_is_fetched_from_where_it_came(hub, repo, monkeypatch):
    monkeypatch.setattr(models, "_enqueue", lambda row: None)
    token = hub_services.save_token("mine", "hf_goodtoken") if "private" in repo else None
    row = hub_services.start_hub_import(repo, token=token, now=NOW)
    models.finish_import(row.pk, timezone.now())
    row.refresh_from_db()
    hub.repos[repo].push({"tiny-Q4_K_M.gguf": HubFile(b"of a later commit", lfs=True)})
    sent = hub.sent["config.json"]
    spoil(blob_of(copy_of(row), "tiny-Q4_K_M.gguf"))
    assert verify(copy_of(row)).state == "whole"
    assert models.verify_version(row) == []
    assert hub.sent["config.json"] == sent  # that file only
    assert hub.leaks == []


@pytest.mark.django_db(transaction=True)
def test_a_file_that_is_known_to_be_damaged_is_not_taken_for_one_that_is_there(hub, monkeypatch):
    monkeypatch.setattr(models, "_enqueue", lambda row: None)
    first = hub_services.start_hub_import("org/tiny", name="first", now=NOW)
    models.finish_import(first.pk, timezone.now())
    first.refresh_from_db()
    spoil(blob_of(copy_of(first), "tiny-Q4_K_M.gguf"))
    scrub.verify_now(copy_of(first), NOW)
    second = hub_services.start_hub_import("org/tiny", name="second", now=NOW)
    assert models.finish_import(second.pk, timezone.now()) == "ready"
    second.refresh_from_db()
    assert models.verify_version(second) == models.verify_version(first) == []
    assert copy_of(first).state == "whole"


def test_the_command_refuses_names_of_nothing() -> None:
    with pytest.raises(CommandError, match="no model misspelt"):
        call_command("verify_store", "misspelt")
    with pytest.raises(CommandError, match="no location nowhere"):
        call_command("verify_store", location="nowhere")
