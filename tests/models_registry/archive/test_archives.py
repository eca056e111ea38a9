"""Versions that go from one master to another by a folder or a tar."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.http import StreamingHttpResponse
from django.test import Client
from pytest_django import Settings

from models_registry import services
from models_registry.archive.manifest import NAME
from models_registry.archive.services import export_version
from models_registry.errors import ExportRefused, InvalidName, VersionTaken
from models_registry.location_models import StorageLocation
from models_registry.models import ModelAlias, ModelVersion, VersionState
from tests.models_registry.archive.tars import WEIGHTS, sound, tar
from tests.models_registry.factories import NOW, make_version, write_gguf, write_safetensors

pytestmark = pytest.mark.django_db
LONG = f"{'folder/' * 30}{'x' * 120}-ü.txt"


@pytest.fixture
def version(tmp_path: Path) -> ModelVersion:
    folder = write_safetensors(tmp_path / "m", shards=2)
    place = folder / LONG
    place.parent.mkdir(parents=True)
    place.write_text("deep")
    (folder / "empty.txt").touch()
    return make_version(folder, name="org/tiny", version="v1.5")


def elsewhere(settings: Settings, tmp_path: Path) -> None:
    """Another master: no rows, no files."""
    ModelAlias.objects.all().delete()
    ModelVersion.objects.all().delete()
    StorageLocation.objects.all().delete()
    settings.MODEL_STORE_DIR = tmp_path / "other-store"


@pytest.mark.parametrize("target", ["export.tar", "export"])
def test_it_is_the_same_there_under_its_own_name(
    version: ModelVersion, settings: Settings, tmp_path: Path, target: str
) -> None:
    made = export_version(version, tmp_path / target)
    told = (version.digest, version.parameter_count, version.manifest)
    elsewhere(settings, tmp_path)
    row = services.import_path(None, made, now=NOW)
    assert str(row) == "org/tiny:v1.5"
    assert (row.digest, row.parameter_count, row.manifest) == told
    assert services.verify_version(row) == []
    assert services.import_path(None, made, now=NOW) == row
    other = services.import_path("mine", made, version="2", now=NOW)
    assert str(other) == "mine:2"


def test_every_tar_program_reads_it(version: ModelVersion, tmp_path: Path) -> None:
    made = export_version(version, tmp_path / "x.tar")
    listed = subprocess.run(["tar", "-tf", made], capture_output=True, check=True, text=True).stdout
    assert listed.splitlines()[0] == NAME
    with tarfile.open(made) as opened:
        assert opened.extractfile(f"files/{LONG}").read() == b"deep"
        about = json.load(opened.extractfile(NAME))
    assert (about["name"], about["version"], about["format_version"]) == ("org/tiny", "v1.5", 1)
    assert about["facts"]["architecture"] == "LlamaForCausalLM" or about["facts"]["format"] == "safetensors"


@pytest.mark.parametrize("kind", ["gnu", "pax", "posix"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_folder_that_was_packed_by_hand_is_taken_too(
    version: ModelVersion, settings: Settings, tmp_path: Path, kind: str, inside: bool
) -> None:
    folder = export_version(version, tmp_path / "export")
    where = ["-C", str(folder), "."] if inside else ["-C", str(tmp_path), "export"]
    subprocess.run(["tar", "-cf", tmp_path / "packed.tar", f"--format={kind}", *where], check=True)
    digest = version.digest
    elsewhere(settings, tmp_path)
    assert services.import_path(None, tmp_path / "packed.tar", now=NOW).digest == digest


def test_names_without_an_archive_and_numbers_that_are_taken(version: ModelVersion, tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        services.import_path(None, write_gguf(tmp_path), now=NOW)
    packed = tar(tmp_path / "x.tar", sound({"tiny.gguf": WEIGHTS}, name="org/tiny", version="v1.5"))
    with pytest.raises(VersionTaken):
        services.import_path(None, packed, now=NOW)
    bad = tar(tmp_path / "y.tar", sound({"tiny.gguf": WEIGHTS}, name="../../etc", version="1"))
    with pytest.raises(InvalidName):
        services.import_path(None, bad, now=NOW)


def test_an_export_writes_over_nothing_and_not_into_our_own_home(
    version: ModelVersion, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "there.tar").touch()
    (tmp_path / "link").symlink_to(settings.MODEL_STORE_DIR)
    for target in ("there.tar", "no/folder/x.tar", "store/x.tar", "link/x"):
        with pytest.raises(ExportRefused):
            export_version(version, tmp_path / target)


def test_a_damaged_blob_is_not_exported(version: ModelVersion, tmp_path: Path) -> None:
    blob = services.store().blob_path(version.manifest["files"][0]["sha256"])
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)
    before = set(tmp_path.iterdir())
    for target in ("x.tar", "x"):
        with pytest.raises(ExportRefused, match="damaged"):
            export_version(version, tmp_path / target)
    assert set(tmp_path.iterdir()) == before


async def _body(answer: StreamingHttpResponse) -> bytes:
    return b"".join([chunk async for chunk in answer.streaming_content])


def test_the_api_gives_it_as_it_reads_it_and_takes_it_back(
    version: ModelVersion,
    settings: Settings,
    tmp_path: Path,
    client: Client,
    admin: User,
    django_capture_on_commit_callbacks,
) -> None:
    client.force_login(admin)
    url = f"/api/v1/model-versions/{version.pk}/export/"
    answer = client.get(url)
    body = async_to_sync(_body)(answer)
    assert int(answer.headers["Content-Length"]) == len(body)
    assert answer.headers["Content-Disposition"] == 'attachment; filename="org_tiny-v1.5.tar"'
    assert int(client.head(url).headers["Content-Length"]) == len(body)
    digest = version.digest
    elsewhere(settings, tmp_path)
    with django_capture_on_commit_callbacks(execute=True):
        made = client.post("/api/v1/model-versions/", {"file": SimpleUploadedFile("x.tar", body)})
    assert made.status_code == 202, made.content
    row = ModelVersion.objects.get()
    assert (row.state, row.digest, str(row)) == (VersionState.READY, digest, "org/tiny:v1.5")
    assert not list((settings.MODEL_STORE_DIR / "uploads").iterdir())


def test_a_bad_upload_is_refused_at_once_and_gone(settings: Settings, client: Client, admin: User) -> None:
    client.force_login(admin)
    answer = client.post("/api/v1/model-versions/", {"file": SimpleUploadedFile("x.tar", b"x" * 5000)})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_archive")
    assert not list((settings.MODEL_STORE_DIR / "uploads").iterdir())


def test_the_commands_write_and_take(
    version: ModelVersion, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("export_model", "org/tiny", str(tmp_path / "x.tar"))
    with pytest.raises(CommandError, match="no ready version"):
        call_command("export_model", "org/tiny:2", str(tmp_path / "y.tar"))
    elsewhere(settings, tmp_path)
    call_command("import_model", str(tmp_path / "x.tar"))
    assert "org/tiny:v1.5 is ready" in capsys.readouterr().out
