"""The manifest of an archive: what the version was called, what is known of it, and every file with its hash."""

from __future__ import annotations

from typing import Any

import msgspec

from models_registry.errors import BadArchive
from models_registry.scan import MOST_FILES
from wire.errors import BadMessage
from wire.manifest import Manifest, ManifestFile, check_manifest

NAME = "stokehold-manifest.json"
FILES = "files/"
FORMAT = "stokehold-model"
FORMAT_VERSION = 1
MOST_BYTES = 32 << 20


class ArchiveManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`facts` are for people: whoever imports it reads them from the files again."""

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    name: str
    version: str
    source: str = ""
    digest: str
    facts: dict[str, Any] = {}
    files: tuple[ManifestFile, ...]

    @property
    def manifest(self) -> Manifest:
        return Manifest(files=tuple(sorted(self.files)))


class _Envelope(msgspec.Struct):
    format: str = ""
    format_version: int = 0


def encode(manifest: ArchiveManifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode(content: bytes) -> ArchiveManifest:
    """Raises BadArchive: no manifest, one of another format, unsafe names, or another digest than that of its files."""
    try:
        envelope = msgspec.json.decode(content, type=_Envelope)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadArchive(f"{NAME} cannot be read: {error}.") from error
    if envelope.format != FORMAT:
        raise BadArchive(f"{NAME} is of the format {envelope.format[:80]!r}, not {FORMAT!r}.")
    if envelope.format_version != FORMAT_VERSION:
        raise BadArchive(
            f"The archive has format version {envelope.format_version}; this release reads {FORMAT_VERSION}.",
            remedy="Update this installation, or export the version with the same release as this one.",
        )
    try:
        found = msgspec.json.decode(content, type=ArchiveManifest)
        check_manifest(found.manifest)
    except (msgspec.DecodeError, RecursionError, BadMessage) as error:
        raise BadArchive(f"{NAME} is not as it should be: {error}.") from error
    if not found.files or len(found.files) > MOST_FILES:
        raise BadArchive(f"{NAME} names {len(found.files)} files; 1 to {MOST_FILES} are taken.")
    if found.manifest.digest != found.digest:
        raise BadArchive(f"{NAME} was changed: its digest is not that of its files.")
    return found
