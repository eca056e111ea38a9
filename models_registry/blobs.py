"""Serves blobs to agents: `GET/HEAD /api/v1/blobs/{sha256}`, with ranges (RFC 9110 section 14), in 1 MiB chunks.

Async with an async iterator: under ASGI Django would read a synchronous one into memory first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import BinaryIO

import structlog
from channels.db import database_sync_to_async
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.utils import timezone

from fleet.errors import FleetError
from fleet.models import Role
from fleet.services import authenticate_node
from models_registry.locations import find_blob
from models_registry.models import ModelVersion, VersionState
from wire.errors import WireError

log = structlog.get_logger(__name__)

CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


async def blob(request: HttpRequest, sha256: str) -> HttpResponseBase:
    """A blob of a READY version, to servers that joined and were not revoked."""
    if request.method not in ("GET", "HEAD"):
        return _problem(405, "method_not_allowed", "A blob can only be read.", Allow="GET, HEAD")
    try:
        await database_sync_to_async(authenticate_node)(
            request.headers.get("Authorization", ""), Role.AGENT, timezone.now()
        )
    except (WireError, FleetError) as error:
        return _problem(error.status, error.code, error.message, error.remedy, **{"WWW-Authenticate": "Bearer"})
    if not _SHA256.fullmatch(sha256) or not await database_sync_to_async(_is_offered)(sha256):
        return _problem(404, "blob_unknown", f"No ready model version has the blob {sha256[:64]}.")
    try:
        file, size_bytes = await asyncio.to_thread(_open, sha256)
    except FileNotFoundError:
        log.error("blob.missing", sha256=sha256)
        return _problem(
            404, "blob_missing", f"The blob {sha256} is gone from the store.", "Import the model version again."
        )
    return _answer(request, sha256, file, size_bytes)


urlpatterns = [path("blobs/<str:sha256>", blob, name="blob")]


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
    headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes", "Cache-Control": "private, immutable, max-age=31536000"}
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
        return HttpResponse(status=status, headers=headers, content_type="application/octet-stream")
    return StreamingHttpResponse(
        _chunks(file, part), status=status, headers=headers, content_type="application/octet-stream"
    )


async def _chunks(file: BinaryIO, part: ByteRange) -> AsyncIterator[bytes]:
    with file:
        await asyncio.to_thread(file.seek, part.start)
        left_bytes = part.end - part.start
        while left_bytes > 0:
            chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, left_bytes))
            if not chunk:
                raise OSError("a blob is shorter than it was when it was opened")
            left_bytes -= len(chunk)
            yield chunk


def _open(sha256: str) -> tuple[BinaryIO, int]:
    found = find_blob(sha256)
    if found is None:
        raise FileNotFoundError(sha256)
    file = found.open("rb", buffering=0)
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
