"""The layout of a tar before its first byte is written: its size is known, and its files can be sent one by one."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models_registry.archive.manifest import FILES, NAME, ArchiveManifest, encode
from wire.manifest import ManifestFile

_MODE = 0o444


@dataclass(frozen=True)
class Part:
    """Bytes to write, then those of a blob, if any, then zeros up to the next block."""

    before: bytes
    blob: Path | None
    file: ManifestFile | None
    padding: int

    @property
    def size(self) -> int:
        return len(self.before) + (self.file.size_bytes if self.file else 0) + self.padding


@dataclass(frozen=True)
class TarPlan:
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Of the whole tar, in bytes."""
        return sum(part.size for part in self.parts)


def plan_tar(manifest: ArchiveManifest, blobs: Sequence[Path], made_at: int) -> TarPlan:
    """A POSIX tar with the manifest first. `blobs` in the order of the manifest's files; `made_at`: Unix seconds."""
    content = encode(manifest)
    first = _header(NAME, len(content), made_at) + content + bytes(_padding(len(content)))
    files = [
        Part(_header(FILES + file.path, file.size_bytes, made_at), blob, file, _padding(file.size_bytes))
        for file, blob in zip(manifest.files, blobs, strict=True)
    ]
    size = len(first) + sum(part.size for part in files)
    end = 2 * tarfile.BLOCKSIZE
    end += -(size + end) % tarfile.RECORDSIZE
    return TarPlan((Part(first, None, None, 0), *files, Part(bytes(end), None, None, 0)))


def _header(name: str, size: int, made_at: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, _MODE, made_at
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
