"""Hashes of the pieces of a blob (`wire.pieces`), kept in `settings.PIECES_DIR` under the blob's sha256.

They are made by reading the blob once, which checks its own sha256 as well: a damaged blob gets none, and so is handed
to nobody.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import structlog
from django.conf import settings

from models_registry.errors import RegistryError
from wire.manifest import Manifest
from wire.pieces import HASH_BYTES, PIECE_BYTES, piece_count

log = structlog.get_logger(__name__)
_making: dict[str, threading.Lock] = {}
_READ_BYTES = 1 << 20
_WRITTEN_WITHIN_S = 600.0
"""A file that was begun longer ago than this was left behind."""


class DamagedBlob(RegistryError):
    code = "blob_damaged"
    status = 503
    remedy = "Run `manage.py verify_store --repair`, or import the model version again."


def piece_hashes(sha256: str, blob: Path) -> bytes:
    """sha256 of each piece of `blob`, one after the other; made when they are not there. `sha256` is the whole's.

    Raises DamagedBlob, FileNotFoundError.
    """
    place = Path(settings.PIECES_DIR) / sha256
    known = _read(place, blob)
    if known is not None:
        return known
    with _making.setdefault(sha256, threading.Lock()):  # many servers ask for a new one at once
        known = _read(place, blob)
        if known is None:
            known = _make(sha256, blob)
            _keep(place, known)
    return known


def prepare_pieces(manifest: Manifest, find: Callable[[str], Path | None]) -> None:
    """Have the hashes ready before servers ask, while the bytes are still in memory. A failure is told when they do."""
    for file in manifest.files:
        if file.size_bytes > PIECE_BYTES and (blob := find(file.sha256)):
            try:
                piece_hashes(file.sha256, blob)
            except (OSError, RegistryError) as error:
                log.warning("pieces.not_ready", blob=file.sha256, error=str(error))


def clean_pieces(blobs: set[str]) -> None:
    """Remove hashes of blobs that are gone."""
    for path in Path(settings.PIECES_DIR).glob("*"):
        if path.name not in blobs and not _is_being_written(path):
            path.unlink(missing_ok=True)


def _is_being_written(path: Path) -> bool:
    try:
        return path.name.startswith(".") and time.time() - path.stat().st_mtime < _WRITTEN_WITHIN_S
    except FileNotFoundError:
        return False


def _read(place: Path, blob: Path) -> bytes | None:
    try:
        hashes = place.read_bytes()
    except FileNotFoundError:
        return None
    return hashes if len(hashes) == piece_count(blob.stat().st_size) * HASH_BYTES else None


def _make(sha256: str, blob: Path) -> bytes:
    whole, hashes = hashlib.sha256(), bytearray()
    with blob.open("rb", buffering=0) as file:
        while True:
            piece, left = hashlib.sha256(), PIECE_BYTES
            while left and (data := file.read(min(_READ_BYTES, left))):
                piece.update(data)
                whole.update(data)
                left -= len(data)
            if left == PIECE_BYTES:
                break
            hashes += piece.digest()
    if whole.hexdigest() != sha256:
        log.error("store.damaged", blob=sha256, path=str(blob))
        raise DamagedBlob(f"The blob {sha256[:12]} does not have its sha256 any more.")
    return bytes(hashes)


def _keep(place: Path, hashes: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        with part.open("wb") as file:
            file.write(hashes)
            file.flush()
            os.fsync(file.fileno())
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
