"""Sources of a blob: where the bytes of a file can be had again, best first.

A source leaves the whole, verified file at a place and says whether it could.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import structlog
from django.conf import settings
from django.db.models import Q

from fleet.sealed import unseal
from models_registry.download.downloader import running
from models_registry.download.partial import Busy, Partial
from models_registry.download.remote import Remote
from models_registry.download.transfer import Wanted
from models_registry.errors import LocationUnreachable, RegistryError
from models_registry.hub.client import Hub, origin_of
from models_registry.location_models import InPlaceFile, StorageLocation
from models_registry.locations.find import is_as_hashed
from models_registry.locations.places import reach
from models_registry.locations.servers import from_servers
from models_registry.models import HubToken, ModelVersion
from wire.manifest import ManifestFile

log = structlog.get_logger(__name__)

Note = Callable[[int], None]
"""Called with bytes that were done since the last call; may raise to end the work."""
BlobSource = Callable[[ModelVersion, ManifestFile, Path], bool]
"""Puts a file of a version whole and verified at a place, if it can."""

_CHUNK_BYTES = 1 << 20
_CHECKPOINT_BYTES = 64 << 20


def fetch_anyhow(version: ModelVersion, file: ManifestFile, place: Path) -> bool:
    """From the first of SOURCES that has it. What goes wrong with one is logged."""
    for source in SOURCES:
        try:
            if source(version, file, place):
                return True
        except (RegistryError, OSError, Busy) as error:
            log.warning("blob.source_failed", source=source.__name__, path=file.path, error=str(error))
    return False


def from_locations(version: ModelVersion, file: ManifestFile, place: Path) -> bool:
    """From another copy on this machine, of any version."""
    return any(fetch_local(path, file, place) for path in paths_of(version, file))


def from_hub(version: ModelVersion, file: ManifestFile, place: Path) -> bool:
    """From where it came, at the commit that was taken: by the token it came with, `HF_TOKEN`, those of no project."""
    origin = origin_of(version.source)
    if origin is None:
        return False
    repo, commit = origin
    kept = HubToken.objects.filter(Q(pk=version.hub_token_id) | Q(project=""))
    texts = {row.pk: unseal(row.sealed_token) for row in kept}
    own = texts.pop(version.hub_token_id, None)
    tokens = [*([own] if own else []), settings.HUB_TOKEN, *texts.values()]
    for token in dict.fromkeys(tokens):
        hub = Hub(settings.HUB_ENDPOINT, token)
        remote = Remote(hub.url(repo, commit, file.path), hub.headers, has_hash=True, name=file.path)
        try:
            asyncio.run(_download(Wanted(place, file.size_bytes, remote, sha256=file.sha256)))
            return True
        except RegistryError as error:
            log.warning("blob.not_fetched", repo=repo, path=file.path, error=error.message)
    return False


SOURCES: list[BlobSource] = [from_locations, from_servers, from_hub]


async def _download(wanted: Wanted) -> None:
    async with running(settings.HUB_CONNECTIONS) as downloader:
        await downloader.fetch([wanted])


def paths_of(version: ModelVersion, file: ManifestFile, prefer: StorageLocation | None = None) -> Iterator[Path]:
    """Files within reach that should have these bytes, those of location `prefer` first."""
    rows = sorted(
        StorageLocation.objects.filter(reachable=True), key=lambda row: (row != prefer, not row.builtin, row.read_only)
    )
    for row in rows:
        try:
            store = reach(row)
        except LocationUnreachable:
            continue
        yield store.blob_path(file.sha256)
        yield store.version_path(version.digest) / file.path
        for one in InPlaceFile.objects.filter(sha256=file.sha256, copy__location=row).select_related("copy"):
            path = row.root / one.copy.folder / one.path
            if is_as_hashed(path, one):
                yield path


def fetch_local(source: Path, file: ManifestFile, place: Path, note: Note = lambda _: None) -> bool:
    """Copy a file to `place`, on with what an earlier try left, synced and its hash checked; False when it is wrong.

    Raises NoSpace, Busy (another process does the same), and what `note` raises.
    """
    partial = Partial(place, file.size_bytes, file.sha256)
    if partial.done():
        note(file.size_bytes)
        return True
    try:
        if source.stat().st_size != file.size_bytes:
            return False
        reader = source.open("rb")
    except OSError:
        return False
    with reader:
        partial.open()
        try:
            _copy(reader, partial, note)
            if not partial.is_whole or partial.digest() != file.sha256:
                partial.drop()
                return False
            partial.finish(file.sha256)
            return True
        finally:
            partial.close()


def _copy(reader: BinaryIO, partial: Partial, note: Note) -> None:
    at = partial.spans.prefix_end
    note(at)
    unsaved_bytes = 0
    reader.seek(at)
    while at < partial.size:
        chunk = reader.read(min(_CHUNK_BYTES, partial.size - at))
        if not chunk:
            break
        partial.write(at, chunk)
        partial.hash_on()
        at, unsaved_bytes = at + len(chunk), unsaved_bytes + len(chunk)
        if unsaved_bytes >= _CHECKPOINT_BYTES:
            partial.checkpoint()
            unsaved_bytes = 0
        note(len(chunk))
    partial.hash_on()
