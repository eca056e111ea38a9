"""Blobs from the master, over its pinned TLS, with ranges."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp

from agent.errors import FetchFailed
from agent.join import MASTER_NAME, pinned_context
from wire.join import NodeIdentity
from wire.manifest import ManifestFile
from wire.messages import BLOB_PATH

_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=8, sock_read=30)
_PIECE_BYTES = 2**20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class MasterStream:
    """One open answer of the master."""

    def __init__(self, response: aiohttp.ClientResponse, offset: int) -> None:
        self._response = response
        self.offset = offset

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._response.content.iter_chunked(_PIECE_BYTES):
            yield piece


class MasterBlobs:
    """The master as a source of blobs. One session, owned by who closes it."""

    def __init__(self, identity: NodeIdentity, bearer: Callable[[], str]) -> None:
        self._url = identity.master_url
        self._context = pinned_context(identity.ca_pem)
        self._bearer = bearer
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def open(self, file: ManifestFile, offset: int) -> AsyncIterator[MasterStream]:
        """Raises FetchFailed, also for an answer that breaks off within the context."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False)
        headers = {"Authorization": f"Bearer {self._bearer()}", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            async with self._session.get(
                self._url + BLOB_PATH.format(sha256=file.sha256),
                headers=headers,
                ssl=self._context,
                server_hostname=MASTER_NAME,
                allow_redirects=False,
            ) as response:
                yield MasterStream(response, _offset_of(response, file, offset))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise FetchFailed(
                f"{file.path} could not be fetched from the master: {error or type(error).__name__}"
            ) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _offset_of(response: aiohttp.ClientResponse, file: ManifestFile, asked: int) -> int:
    if response.status == 200:
        return 0
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if response.status == 206 and match is not None and int(match[1]) == asked:
        return asked
    if response.status == 404:
        raise FetchFailed(f"the master does not have {file.path} ({file.sha256[:12]})")
    raise FetchFailed(f"the master answered {response.status} to the question for {file.path}")
