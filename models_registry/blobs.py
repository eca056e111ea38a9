"""What servers ask for about files: a blob (`GET/HEAD /api/v1/blobs/{sha256}`, with ranges as in RFC 9110 section 14),
the hashes of its pieces, and who else has it.

Async with an async iterator: under ASGI Django would read a synchronous one into memory first. With
`BLOB_ACCEL_PREFIX` the bytes are sent by the nginx in front, and never pass through Python.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import msgspec
import structlog
from channels.db import database_sync_to_async
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.utils import timezone

from fleet.errors import FleetError
from fleet.models import Role, Server
from fleet.peers import peers
from fleet.services import authenticate_node
from models_registry.errors import RegistryError
from models_registry.locations import find_blob
from models_registry.locations.find import store_folders
from models_registry.models import ModelVersion, VersionState
from models_registry.pieces import piece_hashes
from wire.errors import WireError
from wire.pace import Limit
from wire.pieces import Peer, PeersReply

log = structlog.get_logger(__name__)

CHUNK_BYTES = 1 << 20
_limit = Limit(settings.SPREAD_BYTES_PER_SECOND or None)
"""Of all that this process sends to servers."""
_BYTES = "application/octet-stream"
_CACHED = "private, immutable, max-age=31536000"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


async def blob(request: HttpRequest, sha256: str) -> HttpResponseBase:
    """A blob of a READY version, to servers that joined and were not revoked."""
    if request.method not in ("GET", "HEAD"):
        return _problem(405, "method_not_allowed", "A blob can only be read.", Allow="GET, HEAD")
    try:
        await _ask(_admit_to_blob, request, sha256)
        place = await _place(sha256)
    except (WireError, FleetError, RegistryError) as error:
        return _refusal(error)
    if settings.BLOB_ACCEL_PREFIX and request.headers.get("X-Forwarded-Proto") == "https":
        headers = {"X-Accel-Redirect": quote(f"{settings.BLOB_ACCEL_PREFIX}{place}"), "Cache-Control": _CACHED}
        return HttpResponse(headers=headers, content_type=_BYTES)
    try:
        file, size_bytes = await asyncio.to_thread(_open, place)
    except FileNotFoundError:
        return _refusal(_missing(sha256))
    return _answer(request, sha256, file, size_bytes)


async def pieces(request: HttpRequest, sha256: str) -> HttpResponseBase:
    """sha256 digests of a blob's pieces, one after the other (`wire.pieces`)."""
    if request.method != "GET":
        return _problem(405, "method_not_allowed", "Hashes can only be read.", Allow="GET")
    try:
        await _ask(_admit_to_blob, request, sha256)
        place = await _place(sha256)
        hashes = await asyncio.to_thread(piece_hashes, sha256, place)
    except (WireError, FleetError, RegistryError) as error:
        return _refusal(error)
    except FileNotFoundError:
        return _refusal(_missing(sha256))
    return HttpResponse(hashes, content_type=_BYTES, headers={"Cache-Control": _CACHED})


async def manifest_peers(request: HttpRequest, digest: str) -> HttpResponseBase:
    """Servers that have, or are getting, files of a manifest (`wire.pieces.PeersReply`)."""
    if request.method != "GET":
        return _problem(405, "method_not_allowed", "Peers can only be asked for.", Allow="GET")
    try:
        found = await _ask(_peers, request, digest)
    except (WireError, FleetError) as error:
        return _refusal(error)
    folders = await asyncio.to_thread(store_folders)
    reply = PeersReply(peers=tuple(found), neighbours=tuple(str(folder) for folder in folders))
    return HttpResponse(msgspec.json.encode(reply), content_type="application/json")


urlpatterns = [
    path("blobs/<str:sha256>", blob, name="blob"),
    path("blobs/<str:sha256>/pieces", pieces, name="blob-pieces"),
    path("manifests/<str:digest>/peers", manifest_peers, name="manifest-peers"),
]


class UnknownBlob(RegistryError):
    code = "blob_unknown"
    status = 404
    remedy = "Import the model version again, or wait for the newest desired state."


async def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """Of the database; one change of threads for all that a request has to ask."""
    return await database_sync_to_async(question)(*arguments)


def _admit(request: HttpRequest) -> Server:
    """Who asks. Raises WireError, FleetError."""
    found = authenticate_node(request.headers.get("Authorization", ""), Role.AGENT, timezone.now())
    assert isinstance(found, Server)  # noqa: S101 - of that role
    return found


def _admit_to_blob(request: HttpRequest, sha256: str) -> None:
    """Raises WireError, FleetError; UnknownBlob unless a READY version has it."""
    _admit(request)
    if not _SHA256.fullmatch(sha256) or not _is_offered(sha256):
        raise UnknownBlob(f"No ready model version has the blob {sha256[:64]}.")


def _peers(request: HttpRequest, digest: str) -> list[Peer]:
    """Raises WireError, FleetError."""
    return peers.holders(digest, _admit(request).pk, timezone.now())


async def _place(sha256: str) -> Path:
    """Where a blob lies, in whichever location. Raises UnknownBlob."""
    place = await asyncio.to_thread(find_blob, sha256)
    if place is None:
        log.error("blob.missing", sha256=sha256)
        raise _missing(sha256)
    return place.absolute()


def _missing(sha256: str) -> UnknownBlob:
    return UnknownBlob(f"The blob {sha256} is gone from the store.", remedy="Import the model version again.")


def _refusal(error: WireError | FleetError | RegistryError) -> HttpResponse:
    more = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return _problem(error.status, error.code, error.message, error.remedy, **more)


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` to `end`, the latter excluded."""

    start: int
    end: int


class RangeNotSatisfiable(ValueError):
    """The asked range has no byte of the blob."""


def parse_range(header: str, size_bytes: int) -> ByteRange | None:
    """The single range asked for; None when there is none or it is not understood (then the whole is sent).

    Raises RangeNotSatisfiable.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last N bytes
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        start, end = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= end:
        raise RangeNotSatisfiable(header)
    return ByteRange(start, end)


def _answer(request: HttpRequest, sha256: str, file: BinaryIO, size_bytes: int) -> HttpResponseBase:
    headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes", "Cache-Control": _CACHED}
    try:
        asked = parse_range(request.headers.get("Range", ""), size_bytes)
    except RangeNotSatisfiable:
        file.close()
        return _problem(
            416,
            "range_not_satisfiable",
            f"The blob has {size_bytes} bytes.",
            "Ask for a range within it.",
            **{**headers, "Content-Range": f"bytes */{size_bytes}"},
        )
    part = asked or ByteRange(0, size_bytes)
    headers["Content-Length"] = str(part.end - part.start)
    status = HTTPStatus.OK
    if asked:
        status, headers["Content-Range"] = HTTPStatus.PARTIAL_CONTENT, f"bytes {part.start}-{part.end - 1}/{size_bytes}"
    if request.method == "HEAD":
        file.close()
        return HttpResponse(status=status, headers=headers, content_type=_BYTES)
    return StreamingHttpResponse(_chunks(file, part), status=status, headers=headers, content_type=_BYTES)


async def _chunks(file: BinaryIO, part: ByteRange) -> AsyncIterator[bytes]:
    with file:
        await asyncio.to_thread(file.seek, part.start)
        left_bytes = part.end - part.start
        while left_bytes > 0:
            chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, left_bytes))
            if not chunk:
                raise OSError("a blob is shorter than it was when it was opened")
            left_bytes -= len(chunk)
            await _limit.take(len(chunk))
            yield chunk


def _open(place: Path) -> tuple[BinaryIO, int]:
    file = place.open("rb", buffering=0)
    return file, file.seek(0, 2)


def _is_offered(sha256: str) -> bool:
    ready = ModelVersion.objects.filter(state=VersionState.READY).order_by().values_list("digest", flat=True)
    try:
        return any(sha256 in _hashes(digest) for digest in ready.distinct())
    except ModelVersion.DoesNotExist:  # deleted just now: the agent asks again
        return False


@lru_cache(maxsize=4096)
def _hashes(digest: str) -> frozenset[str]:
    """Blobs of a manifest. A digest stands for one content, so this never changes."""
    version = ModelVersion.objects.filter(digest=digest, state=VersionState.READY).earliest("pk")
    return frozenset(file["sha256"] for file in version.manifest["files"])


def _problem(status: int, code: str, message: str, remedy: str = "", **headers: str) -> HttpResponse:
    """An RFC 9457 problem document."""
    body = {"type": f"urn:stokehold:problem:{code}", "title": code.replace("_", " "), "status": status}
    body |= {"code": code, "detail": message, "remedy": remedy}
    return JsonResponse(body, status=status, headers=headers, content_type="application/problem+json")
