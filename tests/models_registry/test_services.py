"""Importing and deleting model versions."""

import datetime as dt
import errno
import os
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from models_registry import removal, services, tasks
from models_registry.errors import BadSource, DamagedModel, InvalidName, NoSpace, NotReady, VersionInUse, VersionTaken
from models_registry.models import Model, ModelVersion, VersionState
from tests.models_registry.factories import (
    CONFIG,
    NOW,
    VALUES,
    demo_model,
    files_below,
    make_version,
    write_gguf,
    write_safetensors,
)

pytestmark = pytest.mark.django_db


def other_gguf(folder: Path) -> Path:
    return write_gguf(folder, values={**VALUES, "general.name": "other"})


def live_deployment(version: ModelVersion, name: str = "chat", deleted: bool = False):
    from deployments.models import Deployment, Revision

    deployment = Deployment.objects.create(name=name, deleted_at=NOW if deleted else None)
    return Revision.objects.create(deployment=deployment, number=1, model_version=version, engine="llamacpp")


def test_the_demo_model_is_imported_with_its_facts(model_store):
    version = make_version(demo_model(), name="smollm2", link=True)
    assert version.state == VersionState.READY
    assert (version.architecture, version.parameter_count, version.quantization) == ("llama", 134_515_008, "Q4_1")
    assert version.metadata["entry"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert version.created_at == NOW
    manifest = services.manifest_of(ModelVersion.objects.get(pk=version.pk))
    assert manifest.digest == version.digest
    assert services.verify_version(version) == []


def test_a_folder_of_safetensors_is_imported_whole(tmp_path):
    version = make_version(write_safetensors(tmp_path / "m", shards=2))
    assert (version.format, version.architecture) == ("safetensors", "LlamaForCausalLM")
    assert len(services.manifest_of(version).files) == 3


def test_the_same_files_under_the_same_name_are_the_same_version(tmp_path):
    first = make_version(write_gguf(tmp_path))
    again = make_version(write_gguf(tmp_path), version="other")
    assert again.pk == first.pk
    assert ModelVersion.objects.count() == 1
    assert make_version(write_gguf(tmp_path), name="another").pk != first.pk


def test_importing_again_repairs_a_lost_checkout(tmp_path, model_store):
    version = make_version(write_gguf(tmp_path))
    next((model_store / "versions" / version.digest).iterdir()).unlink()
    (model_store / "versions" / version.digest).rmdir()
    make_version(write_gguf(tmp_path))
    assert services.verify_version(version) == []


def test_versions_are_numbered_from_one(tmp_path):
    assert make_version(write_gguf(tmp_path / "a")).version == "1"
    assert make_version(other_gguf(tmp_path / "b"), version="7").version == "7"
    third = write_gguf(tmp_path / "c", values={**VALUES, "general.name": "third"})
    assert make_version(third).version == "8"


def test_a_version_with_other_files_keeps_its_name(tmp_path, model_store):
    make_version(write_gguf(tmp_path / "a"), version="1")
    before = files_below(model_store)
    with pytest.raises(VersionTaken, match=r"version tiny:1 already") as caught:
        make_version(other_gguf(tmp_path / "b"), version="1")
    assert caught.value.status == 409
    assert files_below(model_store) == before


def test_a_damaged_file_leaves_no_row_and_no_file(tmp_path, model_store):
    (tmp_path / "bad.gguf").write_bytes(write_gguf(tmp_path).read_bytes()[:-5000])
    with pytest.raises(DamagedModel):
        make_version(tmp_path / "bad.gguf")
    assert not Model.objects.exists()
    assert files_below(model_store) == set()


@pytest.mark.parametrize(("name", "version"), [("", None), ("../x", None), ("a b", None), ("x", ""), ("x", "a/b")])
def test_names_are_checked_before_anything_is_read(tmp_path, name, version):
    with pytest.raises(InvalidName):
        make_version(tmp_path / "nothing", name=name, version=version)


def test_the_home_folder_cannot_be_imported(settings, tmp_path):
    class Home:
        path = tmp_path / "home"

    (Home.path / "ca").mkdir(parents=True)
    (Home.path / "ca" / "ca.key").write_text("secret")
    settings.HOME = Home
    (tmp_path / "innocent").symlink_to(Home.path / "ca")
    for path in (Home.path, Home.path / "ca" / "ca.key", tmp_path, Path("/"), tmp_path / "innocent"):
        with pytest.raises(BadSource, match="home folder"):
            make_version(path)


def test_no_secret_or_database_outside_the_home_folder_is_imported(settings, tmp_path, monkeypatch):
    settings.CA_DIR = tmp_path / "elsewhere" / "ca"
    embedded = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "data" / "db.sqlite3")}
    monkeypatch.setitem(settings.DATABASES, "default", embedded)
    for secret in (settings.CA_DIR / "ca.key", tmp_path / "data" / "db.sqlite3", tmp_path / "data" / "db.sqlite3-wal"):
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_text("secret")
        for path in (secret, secret.parent):
            with pytest.raises(BadSource, match="home folder"):
                make_version(path)


def test_an_upload_of_somebody_else_is_no_source(tmp_path, model_store):
    services.start_upload("tiny", write_gguf(tmp_path), "tiny.gguf", now=NOW)
    kept = next((model_store / "uploads").glob("*/*"))
    for path in (kept, kept.parent, model_store):
        with pytest.raises(BadSource, match="home folder"):
            services.start_import("stolen", path, now=NOW)
    assert kept.exists()


def test_files_of_the_system_that_are_no_files_are_refused(model_store):
    for path in ("/proc/self/environ", "/dev/null", "/dev/zero", "/proc/self/fd"):
        with pytest.raises(BadSource):
            make_version(Path(path))
    assert files_below(model_store) == set()


def test_a_path_that_is_no_text_is_refused(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    write_gguf(folder)
    with pytest.raises(BadSource, match="not a path that can be written down"):
        make_version(folder)


def test_a_header_that_no_database_could_keep_is_kept_in_part(tmp_path):
    odd = "llama\0" + "x" * 300
    values = {**VALUES, "general.architecture": odd, "general.name": "a\0b\ud7ff", "general.license": b"\xff\xfe"}
    version = make_version(write_gguf(tmp_path, values=values))
    version.refresh_from_db()
    assert version.architecture.startswith("llama x")
    assert len(version.architecture) <= 80
    assert "\0" not in str(version.metadata)


def test_a_configuration_that_no_database_could_keep_is_kept_in_part(tmp_path):
    config = {**CONFIG, "architectures": ["A\0" * 90], "model_type": {"deep": ["x"] * 1000}, "torch_dtype": "b\0f16"}
    version = make_version(write_safetensors(tmp_path / "m", config=config))
    version.refresh_from_db()
    assert version.architecture.startswith("A A")
    assert "model_type" not in version.metadata
    assert version.metadata["dtype"] == "b f16"


def test_more_parameters_than_a_database_can_count_are_damage(tmp_path, model_store):
    tensors = tuple((f"t{number}", (1 << 25, 1 << 25), 999) for number in range(2048))
    with pytest.raises(DamagedModel, match="parameters"):
        make_version(write_gguf(tmp_path, tensors=tensors))
    assert not Model.objects.exists()


def test_a_very_long_number_is_not_counted_on_from(tmp_path):
    make_version(write_gguf(tmp_path / "a"), version="9" * 40)
    assert make_version(other_gguf(tmp_path / "b")).version == "1"


def test_a_name_with_a_line_break_at_its_end_is_refused(tmp_path):
    for name, version in (("tiny\n", None), ("tiny", "1\n")):
        with pytest.raises(InvalidName):
            make_version(write_gguf(tmp_path), name=name, version=version)


def test_a_file_that_goes_while_it_is_copied_is_a_clear_error(tmp_path, model_store):
    folder = write_safetensors(tmp_path / "m", shards=2)

    def vanish(share: float) -> None:
        (folder / "model-00002-of-00002.safetensors").unlink(missing_ok=True)

    with pytest.raises(BadSource, match="could not be read to their end"):
        make_version(folder, progress=vanish)
    assert files_below(model_store) == set()


def test_a_disk_that_becomes_full_is_named(tmp_path, model_store):
    def full(share: float) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoSpace, match="became full"):
        make_version(write_gguf(tmp_path), progress=full)
    assert files_below(model_store) == set()


def test_blobs_of_a_version_whose_manifest_was_lost_stay(tmp_path, model_store):
    version = make_version(write_gguf(tmp_path))
    (model_store / "manifests" / f"{version.digest}.json").unlink()
    removal.clean_store()
    assert services.verify_version(version) == []


def test_a_background_import_ends_ready(tmp_path, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        version = services.start_import("tiny", write_gguf(tmp_path), now=NOW)
        assert version.state == VersionState.IMPORTING
    version.refresh_from_db()
    assert (version.state, version.progress, version.architecture) == (VersionState.READY, 1.0, "llama")


def test_a_background_import_that_fails_says_why(tmp_path, model_store, django_capture_on_commit_callbacks):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with django_capture_on_commit_callbacks(execute=True):
        version = services.start_import("tiny", tmp_path / "bad.gguf", now=NOW)
    version.refresh_from_db()
    assert version.state == VersionState.FAILED
    assert "bad.gguf ends within its header" in version.error
    assert "Download the file again" in version.error
    assert files_below(model_store) == set()


def test_a_failed_version_makes_way_for_the_next_attempt(tmp_path, django_capture_on_commit_callbacks):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with django_capture_on_commit_callbacks(execute=True):
        services.start_import("tiny", tmp_path / "bad.gguf", version="1", now=NOW)
    assert make_version(write_gguf(tmp_path), version="1").state == VersionState.READY


def test_a_task_delivered_again_changes_nothing(tmp_path, django_capture_on_commit_callbacks):
    path = write_gguf(tmp_path)
    with django_capture_on_commit_callbacks(execute=True):
        version = services.start_import("tiny", path, now=NOW)
    assert tasks.import_version(version.pk) == "ready"
    assert tasks.import_version(version.pk + 1) == "gone"
    assert ModelVersion.objects.count() == 1


def test_a_task_of_a_killed_worker_starts_over(tmp_path, model_store):
    path = write_gguf(tmp_path)
    version = services.start_import("tiny", path, now=NOW)  # its task was taken by a worker that is dead now
    left = model_store / "staging" / "dead"
    left.mkdir(parents=True)
    (left / ".lock").touch()
    assert tasks.import_version(version.pk) == "ready"
    assert not left.exists()


def test_a_version_under_way_keeps_its_name(tmp_path):
    services.start_import("tiny", write_gguf(tmp_path), version="1", now=NOW)
    with pytest.raises(VersionTaken, match="being imported"):
        services.start_import("tiny", write_gguf(tmp_path), version="1", now=NOW)
    with pytest.raises(NotReady):
        services.manifest_of(ModelVersion.objects.get())
    with pytest.raises(NotReady):
        removal.delete_version(ModelVersion.objects.get())


def test_an_import_nobody_finishes_is_called_failed(tmp_path):
    services.start_import("tiny", write_gguf(tmp_path), now=NOW)
    assert services.expire_imports(NOW + dt.timedelta(hours=11)) == 0
    assert services.expire_imports(NOW + dt.timedelta(hours=13)) == 1
    assert ModelVersion.objects.get().state == VersionState.FAILED


def test_deleting_a_version_removes_the_files_nobody_needs(tmp_path, model_store, django_capture_on_commit_callbacks):
    shared = write_safetensors(tmp_path / "a")
    kept = make_version(shared)
    (shared / "more.txt").write_text("only here")
    gone = make_version(shared)
    with django_capture_on_commit_callbacks(execute=True):
        removal.delete_version(gone)
    assert services.verify_version(kept) == []
    assert not (model_store / "versions" / gone.digest).exists()
    with django_capture_on_commit_callbacks(execute=True):
        removal.delete_version(kept)
    assert files_below(model_store) == set()
    assert not Model.objects.exists()


def test_a_version_a_live_deployment_uses_stays(tmp_path):
    version = make_version(write_gguf(tmp_path))
    live_deployment(version, "chat")
    with pytest.raises(VersionInUse, match=r"tiny:1 is used by chat\.") as caught:
        removal.delete_version(version)
    assert caught.value.status == 409
    assert services.verify_version(version) == []


def test_a_version_of_a_deployment_going_away_stays_until_it_is_gone(tmp_path, django_capture_on_commit_callbacks):
    version = make_version(write_gguf(tmp_path))
    revision = live_deployment(version, deleted=True)
    with pytest.raises(VersionInUse, match="going away"):
        removal.delete_version(version)
    revision.deployment.delete()
    with django_capture_on_commit_callbacks(execute=True):
        removal.delete_version(version)
    assert not ModelVersion.objects.exists()


def test_the_command_imports_and_says_what_it_is(tmp_path, capsys):
    call_command("import_model", "tiny", str(write_gguf(tmp_path)), "--version", "v1", "--link")
    assert "tiny:v1 is ready: GGUF, llama, F16" in capsys.readouterr().out
    with pytest.raises(CommandError, match="does not exist"):
        call_command("import_model", "tiny", "/nowhere/at/all")


def test_what_is_the_machines_own_or_opens_something_is_never_taken_in(tmp_path, settings):
    (tmp_path / "m" / ".ssh").mkdir(parents=True)
    (tmp_path / "m" / ".ssh" / "id_ed25519").write_text("secret")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for path in ("/etc/passwd", "/etc", "/proc/self/environ", tmp_path / "m" / ".ssh", tmp_path / "link"):
        with pytest.raises(BadSource, match="belongs to the machine"):
            services.import_path("m", Path(path), now=NOW)
    with pytest.raises(BadSource, match="keys are kept"):
        services.import_path("m", tmp_path / "m", now=NOW)
    assert not ModelVersion.objects.exists()


def test_models_are_taken_from_the_folders_that_the_operator_names_only(tmp_path, settings):
    inside, outside = write_gguf(tmp_path / "models" / "m"), write_gguf(tmp_path / "other")
    settings.IMPORT_ROOTS = [str(tmp_path / "models")]
    services.import_path("m", inside, now=NOW)
    (tmp_path / "models" / "out").symlink_to(outside)
    for path in (outside, tmp_path / "models" / ".." / "other", tmp_path / "models" / "out"):
        with pytest.raises(BadSource, match="outside the folders") as refused:
            services.import_path("n", path, now=NOW)
        assert "STOKEHOLD_IMPORT_ROOTS" in refused.value.remedy
