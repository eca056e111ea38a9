"""Archives made to do harm: each is refused with a reason, and nothing is anywhere afterwards."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from models_registry import services
from models_registry.archive.manifest import FILES, NAME
from models_registry.errors import BadArchive, RegistryError
from models_registry.models import Model
from tests.models_registry.archive.tars import WEIGHTS, manifest_bytes, member, sound, tar
from tests.models_registry.factories import NOW, files_below

pytestmark = pytest.mark.django_db
GOOD = {"tiny.gguf": WEIGHTS}


def refused(path: Path, words: str) -> None:
    outside = {one for one in path.parent.rglob("*") if "store" not in one.parts}
    with pytest.raises(BadArchive, match=words) as caught:
        services.import_path(None, path, now=NOW)
    assert caught.value.remedy
    assert not Model.objects.exists()
    assert files_below(services.store().root) == set()
    assert {one for one in path.parent.rglob("*") if "store" not in one.parts} == outside
    call_command("verify_store", stdout=io.StringIO())


@pytest.mark.parametrize("name", ["../evil", "files/../../evil", "/etc/evil", "files/a\\b", "files/./x", "files//x"])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    refused(tar(tmp_path / "x.tar", [*sound(GOOD), member(name, b"x")]), "not safe|not named")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"Z", "unknown kind"),
    ],
)
def test_what_is_no_regular_file(tmp_path: Path, kind: bytes, words: str) -> None:
    odd = member(f"{FILES}odd", type=kind, linkname="/etc/passwd")
    refused(tar(tmp_path / "x.tar", [*sound(GOOD), odd], tarfile.GNU_FORMAT), words)


def test_a_link_in_the_place_of_a_folder_that_a_file_then_goes_through(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    link = member(f"{FILES}sub", type=tarfile.SYMTYPE, linkname=str(tmp_path / "outside"))
    refused(tar(tmp_path / "x.tar", [link, *sound({"sub/tiny.gguf": WEIGHTS})]), "symbolic link")


def test_a_sparse_file_as_pax_has_it(tmp_path: Path) -> None:
    odd = member(f"{FILES}odd", b"x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.realsize": str(10**15)})
    refused(tar(tmp_path / "x.tar", [*sound(GOOD), odd]), "sparse")


def test_names_that_are_there_twice(tmp_path: Path) -> None:
    refused(tar(tmp_path / "x.tar", [*sound(GOOD), member(f"{FILES}tiny.gguf", b"other")]), "twice")
    refused(tar(tmp_path / "y.tar", [*sound(GOOD), member(NAME, manifest_bytes(GOOD))]), "twice")
    refused(tar(tmp_path / "z.tar", [*sound(GOOD), member(f"{FILES}tiny.gguf/x", b"x")]), "a file and a folder")


def _with_size(path: Path, told: bytes) -> Path:
    """The last member's size is another one, under a right checksum."""
    content = bytearray(path.read_bytes())
    at = content.rindex(f"{FILES}tiny.gguf".encode())
    content[at + 124 : at + 136] = told
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("told", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\xff" * 8, b"-1".ljust(12, b"\0")])
def test_sizes_that_lie(tmp_path: Path, told: bytes) -> None:
    refused(_with_size(tar(tmp_path / "x.tar", sound(GOOD)), told), "size in it lies|no number")


def test_a_size_that_is_shorter_than_the_manifest_says(tmp_path: Path) -> None:
    told = b"%011o\0" % (len(WEIGHTS) // 2)
    refused(_with_size(tar(tmp_path / "x.tar", sound(GOOD)), told), "bytes, and|damaged|wrong")


def test_an_extended_header_as_large_as_a_disk(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 20
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + b"x" * (1 << 20) + bytes(10240))
    refused(path, "larger than any name")


def test_a_hundred_thousand_members(tmp_path: Path) -> None:
    many = (member(f"{FILES}{number}") for number in range(100_000))
    refused(tar(tmp_path / "x.tar", many, tarfile.USTAR_FORMAT), "more than")


@pytest.mark.parametrize("version", [0, 2, 99])
def test_a_manifest_of_another_version(tmp_path: Path, version: int) -> None:
    refused(tar(tmp_path / "x.tar", sound(GOOD, format_version=version)), f"format version {version}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "of the format"),
        ({"digest": "ab" * 32}, "was changed"),
        ({"files": []}, "names 0 files"),
        ({"files": [{"path": "../x", "size_bytes": 1, "sha256": "ab" * 32}]}, "not as it should be"),
        ({"files": "x"}, "not as it should be"),
        ({"name": None}, "not as it should be"),
    ],
)
def test_a_manifest_that_makes_no_sense(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    refused(tar(tmp_path / "x.tar", sound(GOOD, **changes)), words)


def test_files_that_are_not_what_the_manifest_says(tmp_path: Path) -> None:
    other = member(f"{FILES}tiny.gguf", bytes(len(WEIGHTS)))
    refused(tar(tmp_path / "a.tar", [member(NAME, manifest_bytes(GOOD)), other]), "have the hash")
    refused(tar(tmp_path / "b.tar", [*sound(GOOD), member(f"{FILES}more", b"x")]), "not named in its manifest")
    refused(tar(tmp_path / "c.tar", sound(GOOD)[:1]), "not in the archive")
    refused(tar(tmp_path / "d.tar", sound(GOOD)[1:]), "without")
    refused(tar(tmp_path / "e.tar", [*sound(GOOD), member("stray", b"x")]), "not named")


def test_truncated_at_any_place(tmp_path: Path) -> None:
    whole = tar(tmp_path / "x.tar", sound(GOOD)).read_bytes()
    used = len(whole.rstrip(b"\0"))
    for at in sorted({0, 1, 511, 512, 513, 1024, 2000, used // 2, used - 1}):
        (tmp_path / "x.tar").write_bytes(whole[:at])
        refused(tmp_path / "x.tar", "trunc|no tar|ends")


def test_damaged_anywhere_it_is_refused_or_the_very_same(tmp_path: Path) -> None:
    whole = tar(tmp_path / "x.tar", sound(GOOD)).read_bytes()
    chance = random.Random(5)
    for _ in range(60):
        content = bytearray(whole)
        content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        (tmp_path / "x.tar").write_bytes(content)
        try:
            row = services.import_path(None, tmp_path / "x.tar", now=NOW)
        except RegistryError:
            continue
        assert services.verify_version(row) == []
        assert [file["path"] for file in row.manifest["files"]] == ["tiny.gguf"]


def test_noise_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(os.urandom(20_000))
    refused(tmp_path / "x.tar", "no tar")
    (tmp_path / "y.tar").write_bytes(b"")
    refused(tmp_path / "y.tar", "no tar")
