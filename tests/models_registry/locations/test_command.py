"""`./stokehold store`."""

import pytest
from django.core.management import CommandError, call_command

from models_registry import services as models
from models_registry.locations import copies, jobs
from tests.models_registry.factories import NOW, make_version, write_gguf, write_safetensors

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def worker(monkeypatch):
    """Work is done at once."""
    monkeypatch.setattr(jobs, "_enqueue", lambda job: jobs.finish_job(job.pk, NOW))


def test_a_disk_is_added_everything_is_moved_there_and_back(tmp_path, capsys):
    version = make_version(write_gguf(tmp_path / "m"))
    (tmp_path / "new").mkdir()
    call_command("store", "add", "new", str(tmp_path / "new"), "--quota", "100", "--default")
    call_command("store", "look", "new")
    call_command("store", "move", "default", "new")
    assert "move of tiny:1 (new): done." in capsys.readouterr().out
    assert [copy.location.name for copy in copies.copies_of(version)] == ["new"]
    call_command("store", "copy", "tiny:1", "default")
    call_command("store", "verify", "tiny:1")
    call_command("store", "where", "tiny:1")
    call_command("store", "list")
    out = capsys.readouterr().out
    assert "tiny:1  new  copy  whole  verified 20" in out
    assert f"{tmp_path}/new  0.0 of 100.0 GB of models" in out
    with pytest.raises(CommandError, match="1 versions lie in new"):
        call_command("store", "remove", "new")
    call_command("store", "move", "new", "default", "tiny:1")
    call_command("store", "default", "default")
    call_command("store", "remove", "new")
    assert models.verify_version(version) == []


def test_the_path_of_a_store_that_was_brought_elsewhere_is_told(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    call_command("store", "add", "big", str(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(CommandError, match="is not there"):
        call_command("store", "look", "big")
    call_command("store", "path", "big", str(tmp_path / "new"))
    call_command("store", "mark", "big")
    assert f"{tmp_path}/new is big." in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("look", "nowhere"),
        ("copy", "no:1", "default"),
        ("copy", "tiny:1", "default"),
        ("move", "default", "nowhere"),
        ("add", "x", "/no/such"),
        ("remove", "default"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_remedy(tmp_path, words):
    make_version(write_gguf(tmp_path / "m"))
    with pytest.raises(CommandError, match=r"[.)]$"):
        call_command("store", *words)


def test_an_import_names_its_location(tmp_path, capsys):
    (tmp_path / "big").mkdir()
    call_command("store", "add", "big", str(tmp_path / "big"))
    call_command("import_model", "tiny", str(write_gguf(tmp_path / "m")), location="big")
    call_command("store", "where")
    assert "tiny:1  big  copy  whole" in capsys.readouterr().out
    with pytest.raises(CommandError, match="no location"):
        call_command("import_model", "tiny", str(tmp_path / "m"), location="nowhere")


def test_a_folder_is_registered_in_place(tmp_path, capsys):
    write_safetensors(tmp_path / "nfs" / "llama")
    call_command("store", "add", "nfs", str(tmp_path / "nfs"), "--shared", "--server-path", "/mnt/models")
    call_command("store", "in-place", "tiny", str(tmp_path / "nfs" / "llama"), "nfs")
    call_command("store", "where")
    assert "tiny:1  nfs  in place  whole" in capsys.readouterr().out
    (tmp_path / "nfs" / "bad").mkdir()
    (tmp_path / "nfs" / "bad" / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(CommandError, match="ends within its header"):
        call_command("store", "in-place", "bad", str(tmp_path / "nfs" / "bad"), "nfs")
