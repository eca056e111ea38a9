"""Locations: made, refused, looked at, gone, and removed."""

import datetime as dt
import shutil
from pathlib import Path

import pytest

from models_registry import removal
from models_registry import services as models
from models_registry.errors import (
    BadLocation,
    BadSource,
    LocationInUse,
    LocationReadOnly,
    LocationUnreachable,
    QuotaExceeded,
)
from models_registry.location_models import StorageLocation, VersionCopy
from models_registry.locations import clean, copies, find, places, services
from models_registry.models import ImportJob, ModelVersion
from tests.models_registry.factories import NOW, VALUES, files_below, make_version, write_gguf

pytestmark = pytest.mark.django_db


def where(version: ModelVersion) -> list[str]:
    return [copy.location.name for copy in copies.copies_of(version)]


def test_a_fresh_installation_has_one_location_by_itself(tmp_path, model_store):
    version = make_version(write_gguf(tmp_path / "m"))
    place = StorageLocation.objects.get()
    assert (place.name, place.root, place.is_default, place.builtin) == ("default", model_store, True, True)
    assert where(version) == ["default"]
    assert (model_store / places.MARKER).read_text().strip() == str(place.uid)


def test_what_the_previous_release_took_in_lies_in_the_built_in_location(tmp_path, model_store):
    version = make_version(write_gguf(tmp_path / "m"))
    VersionCopy.objects.all().delete()
    StorageLocation.objects.all().delete()
    (model_store / places.MARKER).unlink()
    removal.clean_store()
    assert models.verify_version(version) == []
    services.look_at_all(NOW)
    copy = VersionCopy.objects.get()
    assert (copy.version, copy.location.builtin, copy.state) == (version, True, "whole")


def test_a_version_that_the_previous_release_deleted_leaves_nothing(tmp_path, model_store):
    version = make_version(write_gguf(tmp_path / "m"))
    version.model.aliases.all().delete()
    ModelVersion.objects.filter(pk=version.pk)._raw_delete("default")
    removal.clean_store()
    assert files_below(model_store) == set()


def test_an_import_goes_where_it_was_told_else_to_the_default(tmp_path, add):
    big = add("big")
    told = models.import_path("told", write_gguf(tmp_path / "m"), location=big, now=NOW)
    assert where(told) == ["big"]
    assert find.find_blob(told.manifest["files"][0]["sha256"]).is_relative_to(tmp_path / "big")
    assert where(make_version(write_gguf(tmp_path / "m"), name="other")) == ["default"]
    services.change_location(big, is_default=True)
    assert where(make_version(write_gguf(tmp_path / "m"), name="third")) == ["big"]
    assert StorageLocation.objects.filter(is_default=True).count() == 1


def test_a_background_import_and_an_upload_go_where_they_were_told(tmp_path, add, django_capture_on_commit_callbacks):
    big = add("big")
    with django_capture_on_commit_callbacks(execute=True):
        first = models.start_import("first", write_gguf(tmp_path / "m"), location=big, now=NOW)
        upload = models.start_upload("up", write_gguf(tmp_path / "n"), "up.gguf", location=big, now=NOW)
    assert where(first) == where(upload) == ["big"]
    assert not ImportJob.objects.exists()
    assert not list((tmp_path / "store" / "uploads").glob("*"))


@pytest.mark.parametrize("path", ["home", "home/ca", "store", ".", "store/blobs", "one/inner", "/"])
def test_a_path_that_is_ours_is_refused(tmp_path, model_store, add, path):
    add("one")
    for folder in ("home/ca", "store/blobs", "one/inner"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for kind in ("store", "shared"):
        with pytest.raises(BadLocation, match="another location"):
            services.add_location("bad", str(tmp_path / path), kind=kind, now=NOW)


def test_a_path_by_another_name_is_the_same_path(tmp_path, add):
    add("one")
    (tmp_path / "alias").symlink_to(tmp_path / "one")
    with pytest.raises(BadLocation):
        services.add_location("two", str(tmp_path / "alias"), now=NOW)


@pytest.mark.parametrize("path", ["relative", "/no/such/folder", "/dev/null", "/tmp/a\0b", ""])
def test_a_path_that_is_no_folder_is_refused(path):
    with pytest.raises(BadLocation):
        services.add_location("bad", path, now=NOW)


@pytest.mark.parametrize(
    "more", [{"name": "a b"}, {"name": "one"}, {"name": ""}, {"server_path": "rel"}, {"server_path": "/a/../b"}]
)
def test_wrong_fields_are_refused_and_leave_nothing(tmp_path, add, more):
    add("one")
    (tmp_path / "two").mkdir()
    fields = {"name": "two", "path": str(tmp_path / "two"), "now": NOW, **more}
    with pytest.raises(BadLocation):
        services.add_location(fields.pop("name"), fields.pop("path"), **fields)
    assert files_below(tmp_path / "two") == set()


def test_a_store_of_ours_begins_empty(tmp_path):
    (tmp_path / "full" / "downloads").mkdir(parents=True)
    (tmp_path / "full" / "downloads" / "thesis.pdf").write_text("mine")
    with pytest.raises(BadLocation, match="not empty"):
        services.add_location("full", str(tmp_path / "full"), now=NOW)
    assert services.add_location("full", str(tmp_path / "full"), kind="shared", now=NOW).reachable
    removal.clean_store()
    assert (tmp_path / "full" / "downloads" / "thesis.pdf").exists()


def test_a_location_of_another_installation_is_no_store_of_ours(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / places.MARKER).write_text("somebody else\n")
    with pytest.raises(BadLocation, match="another installation"):
        services.add_location("mine", str(tmp_path / "theirs"), now=NOW)
    shared = services.add_location("mine", str(tmp_path / "theirs"), kind="shared", now=NOW)
    services.remove_location(shared)
    assert (tmp_path / "theirs" / places.MARKER).read_text() == "somebody else\n"


def test_a_read_only_folder_needs_a_marker_made_by_hand(tmp_path):
    (tmp_path / "ro").mkdir()
    with pytest.raises(LocationReadOnly, match="read-only") as caught:
        services.add_location("ro", str(tmp_path / "ro"), kind="shared", read_only=True, now=NOW)
    assert "by hand" in caught.value.remedy
    assert not StorageLocation.objects.filter(name="ro").exists()
    (tmp_path / "ro" / places.MARKER).write_text("nfs-1\n")
    assert services.add_location("ro", str(tmp_path / "ro"), kind="shared", read_only=True, now=NOW).reachable
    assert files_below(tmp_path / "ro") == set()


def test_a_disk_that_is_not_mounted_is_never_taken_for_an_empty_one(tmp_path, add):
    big = add("big")
    version = models.import_path("tiny", write_gguf(tmp_path / "m"), location=big, now=NOW)
    sha256 = version.manifest["files"][0]["sha256"]
    (tmp_path / "big").rename(tmp_path / "unplugged")
    (tmp_path / "big").mkdir()  # the mount point
    assert not services.look_at(big, NOW).reachable
    assert "not mounted" in big.error
    assert find.find_blob(sha256) is None
    assert clean.clean_location(big) == 0
    with pytest.raises(LocationUnreachable, match="not mounted"):
        models.import_path("other", write_gguf(tmp_path / "m"), location=big, now=NOW)
    assert models.verify_version(version) == []  # what cannot be seen is not called damaged
    assert VersionCopy.objects.get().state == "whole"
    assert list((tmp_path / "big").iterdir()) == []
    (tmp_path / "big").rmdir()
    (tmp_path / "unplugged").rename(tmp_path / "big")
    assert services.look_at(big, NOW).reachable
    assert find.find_blob(sha256) is not None


def test_another_disk_in_its_place_is_noticed(tmp_path, add):
    big = add("big")
    (tmp_path / "big" / places.MARKER).write_text("other\n")
    assert "another disk" in services.look_at(big, NOW).error
    assert services.mark_location(big, NOW).reachable  # a person says that this is it


def test_a_built_in_store_whose_folder_was_lost_is_not_made_anew(tmp_path, model_store):
    version = make_version(write_gguf(tmp_path / "m"))
    shutil.rmtree(model_store)
    with pytest.raises(LocationUnreachable):
        make_version(write_gguf(tmp_path / "m"), name="other")
    assert not model_store.exists()
    services.mark_location(places.builtin(), NOW)
    assert VersionCopy.objects.get().state == "missing"
    make_version(write_gguf(tmp_path / "m"))
    assert models.verify_version(version) == []
    assert VersionCopy.objects.get().state == "whole"


def test_an_import_waits_while_its_disk_is_away(tmp_path, add):
    big = add("big")
    row = models.start_import("tiny", write_gguf(tmp_path / "m"), location=big, now=NOW)
    ImportJob.objects.update(started_at=NOW)
    (tmp_path / "big").rename(tmp_path / "unplugged")
    assert models.heal_imports(NOW) == 0
    (tmp_path / "unplugged").rename(tmp_path / "big")
    assert models.finish_import(row.pk, NOW) == "ready"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_import_loses_nothing_when_its_disk_goes_away(tmp_path, add, monkeypatch, when):
    big = add("big")
    source = write_gguf(tmp_path / "m")
    (tmp_path / "sent").write_bytes(source.read_bytes())
    monkeypatch.setattr(models, "_enqueue", lambda row: None)
    row = models.start_upload("tiny", tmp_path / "sent", "m.gguf", location=big, now=NOW)

    def unplug(*_: object, **__: object) -> None:
        (tmp_path / "big").rename(tmp_path / "unplugged")
        places.reach(big)

    with monkeypatch.context() as patch:
        if when == "meanwhile":
            patch.setattr(models, "staged_files", unplug)
        else:
            (tmp_path / "big").rename(tmp_path / "unplugged")
        for _ in range(5):  # more often than a worker may be lost
            assert models.finish_import(row.pk, NOW) == "importing"
            row.refresh_from_db()
            assert "goes on when it is there again" in row.error
    (tmp_path / "unplugged").rename(tmp_path / "big")
    assert models.heal_imports(NOW) == 0
    later = NOW + dt.timedelta(minutes=11)
    assert models.heal_imports(later) == 1
    assert models.finish_import(row.pk, later) == "ready"
    row.refresh_from_db()
    assert row.error == ""


def test_a_quota_is_kept_to_the_byte_and_nothing_is_left_of_what_exceeds_it(tmp_path, add):
    source = write_gguf(tmp_path / "m")
    small = add("small", quota_bytes=source.stat().st_size)
    other = write_gguf(tmp_path / "n", values={**VALUES, "general.name": "other"})
    first = models.import_path("first", source, location=small, now=NOW)
    before = files_below(tmp_path / "small")
    with pytest.raises(QuotaExceeded, match="do not go into small"):
        models.import_path("second", other, location=small, now=NOW)
    with pytest.raises(QuotaExceeded):
        models.start_import("second", other, location=small, now=NOW)
    assert files_below(tmp_path / "small") == before
    assert not ModelVersion.objects.exclude(pk=first.pk).exists()
    models.import_path("same-files", source, location=small, now=NOW)  # takes nothing more


def test_a_read_only_location_is_never_written(tmp_path, add):
    big = add("big")
    version = models.import_path("tiny", write_gguf(tmp_path / "m"), location=big, now=NOW)
    services.change_location(big, read_only=True)
    before = files_below(tmp_path / "big")
    with pytest.raises(LocationReadOnly):
        models.import_path("other", write_gguf(tmp_path / "m"), location=big, now=NOW)
    removal.delete_version(version)
    removal.clean_store()
    assert files_below(tmp_path / "big") == before
    with pytest.raises(BadLocation, match="default"):
        services.change_location(big, is_default=True)
    with pytest.raises(BadLocation, match="default"):
        services.change_location(places.builtin(), read_only=True)


def test_each_location_is_cleaned_of_what_is_not_its_own(tmp_path, model_store, add):
    big = add("big")
    models.import_path("kept", write_gguf(tmp_path / "m"), location=big, now=NOW)
    gone = make_version(write_gguf(tmp_path / "m"), name="gone")
    before = files_below(tmp_path / "big")
    gone.model.aliases.all().delete()
    gone.delete()
    assert removal.clean_store() > 0
    assert files_below(model_store) == set()
    assert files_below(tmp_path / "big") == before


def test_a_location_goes_when_it_is_empty_and_leaves_its_folder_as_it_was(tmp_path, add):
    big = add("big", is_default=True)
    version = make_version(write_gguf(tmp_path / "m"))
    with pytest.raises(LocationInUse, match="1 versions"):
        services.remove_location(big)
    removal.delete_version(version)
    services.remove_location(big)
    assert list((tmp_path / "big").iterdir()) == []
    assert places.default().builtin
    with pytest.raises(BadLocation, match="built-in"):
        services.remove_location(places.builtin())


def test_a_store_that_was_brought_to_a_new_disk_is_followed(tmp_path, add):
    big = add("big")
    version = models.import_path("tiny", write_gguf(tmp_path / "m"), location=big, now=NOW)
    (tmp_path / "new").mkdir()
    with pytest.raises(BadLocation, match="not this location"):
        services.change_location(big, path=str(tmp_path / "new"))
    big.refresh_from_db()
    shutil.copytree(tmp_path / "big", tmp_path / "new", dirs_exist_ok=True)
    services.change_location(big, path=str(tmp_path / "new"))
    assert models.verify_version(version) == []
    assert VersionCopy.objects.get().path.is_relative_to(tmp_path / "new")


def test_nothing_in_a_store_is_a_source_of_an_import(tmp_path, add):
    add("big")
    for path in ("big", "big/blobs"):
        (tmp_path / path).mkdir(exist_ok=True)
        write_gguf(tmp_path / path)
        with pytest.raises(BadSource, match="home folder"):
            make_version(tmp_path / path)


def test_a_look_tells_how_full_it_is(tmp_path, add):
    big = add("big")
    source = write_gguf(Path(tmp_path / "m"))
    models.import_path("tiny", source, location=big, now=NOW)
    services.look_at(big, NOW)
    assert big.used_bytes == source.stat().st_size
    assert 0 < big.free_bytes <= big.total_bytes
    assert big.looked_at == NOW


def test_a_store_of_ours_that_could_never_be_filled_is_refused(tmp_path):
    (tmp_path / "ro").mkdir()
    with pytest.raises(BadLocation, match="would stay so"):
        services.add_location("ro", str(tmp_path / "ro"), read_only=True, now=NOW)
