"""Imports from a list of URLs: what is asked of a worker, and what it has to fetch."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

import msgspec
from django.conf import settings

from fleet.sealed import seal, unseal
from models_registry.download.downloader import running
from models_registry.download.remote import Remote
from models_registry.fetching.probe import measured
from models_registry.fetching.work import Item, is_wanted
from models_registry.locations import find_blob
from models_registry.models import ImportJob, ModelVersion
from models_registry.store import matches
from models_registry.urls.parse import UrlFile
from wire.manifest import ManifestFile

KIND = "urls"
_AT_ONCE = 256
"""Measured between two looks at what people have said meanwhile."""


class Pin(msgspec.Struct, frozen=True):
    """What a file was when the import began: it must not become another while it is fetched."""

    size: int
    etag: str


class Spec(msgspec.Struct, frozen=True):
    """(URL without its query, place, sha256), and from when a worker has asked for it, what each file is."""

    kind: str
    files: tuple[tuple[str, str, str], ...]
    pins: tuple[Pin | None, ...] = ()


class Secret(msgspec.Struct, frozen=True):
    """Sealed: headers, and what comes after `?` in each URL, which may be a signature."""

    headers: dict[str, str]
    queries: tuple[str, ...]


def job_fields(files: Sequence[UrlFile], headers: Mapping[str, str]) -> dict[str, object]:
    """Of an ImportJob."""
    spec = Spec(KIND, tuple((file.shown, file.path, file.sha256) for file in files))
    secret = Secret(dict(headers), tuple(file.url.partition("?")[2] for file in files))
    return {"remote": msgspec.to_builtins(spec), "sealed_secret": seal(msgspec.json.encode(secret).decode())}


def items(row: ModelVersion, job: ImportJob) -> list[Item]:
    """What a worker has to fetch. At first every file is asked how large it is, and pinned.

    Raises Parked, RegistryError.
    """
    spec = msgspec.convert(job.remote, Spec)
    secret = msgspec.json.decode(unseal(job.sealed_secret), type=Secret)
    remotes = [
        Remote(f"{url}?{query}" if query else url, dict(secret.headers), has_hash=bool(sha256), name=path)
        for (url, path, sha256), query in zip(spec.files, secret.queries, strict=True)
    ]
    pins = _pinned(row, spec, remotes)
    ImportJob.objects.filter(pk=job.pk).update(remote=msgspec.to_builtins(msgspec.structs.replace(spec, pins=pins)))
    for remote, pin in zip(remotes, pins, strict=True):
        remote.etag = pin.etag
    return [
        Item(path, pin.size, remote, sha256 or _place(row, remote, pin), sha256=sha256)
        for (_, path, sha256), pin, remote in zip(spec.files, pins, remotes, strict=True)
    ]


def _pinned(row: ModelVersion, spec: Spec, remotes: Sequence[Remote]) -> tuple[Pin, ...]:
    pins = list(spec.pins) or [_stored(sha256) for _, _, sha256 in spec.files]
    missing = [number for number, pin in enumerate(pins) if pin is None]
    for start in range(0, len(missing), _AT_ONCE):
        is_wanted(row)
        numbers = missing[start : start + _AT_ONCE]
        sizes = asyncio.run(_measure([remotes[number] for number in numbers]))
        for number, size in zip(numbers, sizes, strict=True):
            pins[number] = Pin(size, remotes[number].etag)
    return tuple(pin for pin in pins if pin is not None)


async def _measure(remotes: Sequence[Remote]) -> list[int]:
    async with running(settings.HUB_CONNECTIONS, loopback=settings.FETCH_FROM_LOOPBACK) as downloader:
        return await measured(downloader.session, remotes)


def _stored(sha256: str) -> Pin | None:
    """Of a file that is in the store already, and whole: its server need not be asked. Nobody else tells its size."""
    if not sha256:
        return None
    blob = find_blob(sha256)
    if blob is None:
        return None
    size = blob.stat().st_size
    return Pin(size, "") if matches(blob, ManifestFile(path="", size_bytes=size, sha256=sha256)) else None


def _place(row: ModelVersion, remote: Remote, pin: Pin) -> str:
    """One content has one place; what cannot be told from another content has one of its own."""
    known = pin.etag or f"import {row.pk}"
    return f"url-{hashlib.sha256(f'{remote.url} {known} {pin.size}'.encode()).hexdigest()}"
