"""Importing and deleting model versions."""

import datetime as dt
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from models_registry import services, tasks
from models_registry.errors import BadSource, DamagedModel, InvalidName, NotReady, VersionInUse, VersionTaken
from models_registry.models import Model, ModelVersion, VersionState
from tests.models_registry.factories import (
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
    with pytest.raises(VersionTaken, match=r"tiny:1 with other files") as caught:
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
        services.delete_version(ModelVersion.objects.get())


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
        services.delete_version(gone)
    assert services.verify_version(kept) == []
    assert not (model_store / "versions" / gone.digest).exists()
    with django_capture_on_commit_callbacks(execute=True):
        services.delete_version(kept)
    assert files_below(model_store) == set()
    assert not Model.objects.exists()


def test_a_version_a_live_deployment_uses_stays(tmp_path):
    version = make_version(write_gguf(tmp_path))
    live_deployment(version, "chat")
    with pytest.raises(VersionInUse, match=r"tiny:1 is used by chat\.") as caught:
        services.delete_version(version)
    assert caught.value.status == 409
    assert services.verify_version(version) == []


def test_a_version_of_a_deployment_going_away_stays_until_it_is_gone(tmp_path, django_capture_on_commit_callbacks):
    version = make_version(write_gguf(tmp_path))
    revision = live_deployment(version, deleted=True)
    with pytest.raises(VersionInUse, match="going away"):
        services.delete_version(version)
    revision.deployment.delete()
    with django_capture_on_commit_callbacks(execute=True):
        services.delete_version(version)
    assert not ModelVersion.objects.exists()


def test_the_command_imports_and_says_what_it_is(tmp_path, capsys):
    call_command("import_model", "tiny", str(write_gguf(tmp_path)), "--version", "v1", "--link")
    assert "tiny:v1 is ready: GGUF, llama, F16" in capsys.readouterr().out
    with pytest.raises(CommandError, match="does not exist"):
        call_command("import_model", "tiny", "/nowhere/at/all")
