"""Tars as they should be, and as nobody should make them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models_registry.archive.manifest import FILES, NAME
from tests.models_registry.factories import gguf_bytes
from wire.manifest import Manifest, ManifestFile

WEIGHTS = gguf_bytes()


def manifest_bytes(contents: dict[str, bytes], /, **changes: Any) -> bytes:
    """Of an archive with these files."""
    rows = [
        {"path": path, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in sorted(contents.items())
    ]
    digest = Manifest(files=tuple(ManifestFile(**row) for row in rows)).digest
    told = {"format": "stokehold-model", "format_version": 1, "name": "tiny", "version": "7", "digest": digest}
    return json.dumps({**told, "files": rows, **changes}).encode()


def member(name: str, content: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def tar(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as made:
        for info, content in members:
            made.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def sound(contents: dict[str, bytes], /, **changes: Any) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Members of an archive as it should be."""
    return [
        member(NAME, manifest_bytes(contents, **changes)),
        *(member(FILES + path, content) for path, content in contents.items()),
    ]
