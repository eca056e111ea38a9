"""Hands blobs to peers: HTTP/1.1 on connections that the relay let in (mutual TLS, certificate of an agent)."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable

import msgspec
import structlog
from aiohttp import web

from agent.store.parts import Part
from agent.store.store import Store
from wire.pace import Limit
from wire.pieces import HAVE_PATH, PEER_BLOB_PATH, PIECE_BYTES, Have, HaveReply, pack

_AT_ONCE = 24
_CHUNK_BYTES = 1 << 20
_MAX_ASKED = 20_000
_BLOB = re.compile(re.escape(PEER_BLOB_PATH).replace(re.escape("{sha256}"), "([0-9a-f]{64})"))
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})")
_SHA256 = re.compile(r"[0-9a-f]{64}")

log = structlog.get_logger(__name__)


class BlobServer:
    """`protocol` makes what takes over a connection."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.limit = Limit()
        self.serving = 0
        self._server = web.Server(self._answer, access_log=None, keepalive_timeout=30.0)

    @property
    def protocol(self) -> Callable[[], asyncio.Protocol]:
        return self._server

    async def close(self) -> None:
        await self._server.shutdown(0.1)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST" and request.path == HAVE_PATH:
            return await self._have(request)
        match = _BLOB.fullmatch(request.path)
        if request.method != "GET" or match is None:
            return web.Response(status=404)
        return await self._blob(request, match[1])

    async def _have(self, request: web.BaseRequest) -> web.Response:
        try:
            asked = msgspec.json.decode(await request.read(), type=list[str])
        except msgspec.DecodeError:
            return web.Response(status=400)
        blobs = {}
        for sha256 in asked[:_MAX_ASKED]:
            if not _SHA256.fullmatch(sha256):
                continue
            found = self._store.part(sha256)
            if found is not None:
                part, coming = found
                blobs[sha256] = Have(done=pack(part.done, part.count), coming=pack(coming, part.count))
            elif self._store.shelf.blob(sha256).exists():
                blobs[sha256] = Have(whole=True)
        return web.Response(body=msgspec.json.encode(HaveReply(blobs=blobs)), content_type="application/json")

    async def _blob(self, request: web.BaseRequest, sha256: str) -> web.StreamResponse:
        match = _RANGE.fullmatch(request.headers.get("Range", ""))
        if match is None:
            return web.Response(status=416)
        start, end = int(match[1]), int(match[2]) + 1
        if self.serving >= _AT_ONCE:
            return web.Response(status=503, headers={"Retry-After": "1"})
        self.serving += 1
        try:
            return await self._send(request, sha256, start, end)
        finally:
            self.serving -= 1

    async def _send(self, request: web.BaseRequest, sha256: str, start: int, end: int) -> web.StreamResponse:
        found = self._store.part(sha256)
        try:
            handle = os.open(self._store.shelf.blob(sha256) if found is None else found[0].path, os.O_RDONLY)
        except FileNotFoundError:
            return web.Response(status=404)
        try:
            size = os.fstat(handle).st_size
            if not start < end <= size or (found is not None and not _has(found[0], start, end)):
                return web.Response(status=404)
            headers = {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
            response = web.StreamResponse(status=206, headers=headers)
            await response.prepare(request)
            while start < end:
                data = await asyncio.to_thread(os.pread, handle, min(_CHUNK_BYTES, end - start), start)
                if not data:
                    raise ConnectionAbortedError("a blob became shorter")
                await self.limit.take(len(data))
                await response.write(data)
                start += len(data)
            return response
        finally:
            os.close(handle)


def _has(part: Part, start: int, end: int) -> bool:
    """Whether all of the pieces that [start, end) lies in are there and checked."""
    return all(piece in part.done for piece in range(start // PIECE_BYTES, -(-end // PIECE_BYTES)))
