"""The manifest of a model version: which files it has, their sizes and sha256. Immutable, addressed by its digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath

import msgspec

from wire.errors import BadMessage

_LONGEST_PATH, _LONGEST_NAME = 1000, 255  # bytes; the latter is that of Linux's file systems
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One file of a version: `path` is relative, with `/`, and never leaves the version's folder."""

    path: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Files sorted by path. `digest` names the content: two versions with equal files have equal digests."""

    files: tuple[ManifestFile, ...]

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over the sorted, canonical JSON of the files."""
        return hashlib.sha256(msgspec.json.encode(sorted(self.files))).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def check_path(path: str) -> str:
    """`path` when it is safe to create below a version's folder.

    Raises:
        BadMessage: absolute, empty, with `..`, a backslash, a NUL or a control character, or longer than a disk keeps.
    """
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        raise BadMessage(f"{path!r} cannot be written down") from error
    pure = PurePosixPath(path)
    bad = (
        not path
        or pure.is_absolute()
        or any(part in ("..", ".") for part in path.split("/"))
        or "\\" in path
        or any(ord(char) < 32 for char in path)
        or str(pure) != path
        or len(encoded) > _LONGEST_PATH
        or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME
    )
    if bad:
        raise BadMessage(f"{path!r} is not a safe path inside a model version")
    return path


def check_paths(paths: Sequence[str]) -> None:
    """Raises BadMessage unless every path is safe, is there once, and is not a folder of another one."""
    files: set[str] = set()
    for path in paths:
        check_path(path)
        if path in files:
            raise BadMessage(f"{path!r} is twice in the manifest")
        files.add(path)
    for path in paths:
        folder = path
        while folder := folder.rpartition("/")[0]:
            if folder in files:
                raise BadMessage(f"{folder!r} is a file, and {path!r} lies in a folder of that name")


def check_manifest(manifest: Manifest) -> Manifest:
    """`manifest` when every path is safe and unique, every size sane and every hash a sha256; else BadMessage."""
    check_paths([file.path for file in manifest.files])
    for file in manifest.files:
        if file.size_bytes < 0 or not _SHA256.fullmatch(file.sha256):
            raise BadMessage(f"{file.path!r} has a wrong size or sha256 in the manifest")
    return manifest
