"""Where pieces come from: the master, over its pinned TLS, and peers, over their relays' mutual TLS."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import msgspec

from agent.errors import FetchFailed
from agent.join import MASTER_NAME, pinned_context
from wire.certs import relay_name
from wire.join import NodeIdentity
from wire.manifest import ManifestFile
from wire.messages import BLOB_PATH
from wire.pieces import (
    DOOR,
    HASH_BYTES,
    HAVE_PATH,
    PEER_BLOB_PATH,
    PEERS_PATH,
    PIECES_PATH,
    Have,
    HaveReply,
    Peer,
    PeersReply,
    piece_count,
)

MASTER = "the master"
_MASTER_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=8, sock_read=30)
_PEER_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=4, sock_read=10)
_ASK_S = 10.0
_HASHING_S = 600.0
"""The master may have to read the whole file before it can answer."""
_BUFFER_BYTES = 1 << 20
_MAX_REPLY_BYTES = 16 << 20
_WAKE_BYTES = 128 << 10
_NEAR_END_BYTES = 1 << 20
"""More than what may lie between the kernel and us."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")


class Missing(FetchFailed):
    """The source does not have it."""

    code = "blob_missing"


class Busy(FetchFailed):
    """The source asks to come back later."""

    code = "source_busy"


class Source(Protocol):
    """Somebody who has pieces."""

    name: str
    lanes: int
    """So many pieces are asked of it at once."""

    def read(self, file: ManifestFile, start: int, end: int) -> AsyncGenerator[bytes]:
        """Bytes [start, end). Raises FetchFailed."""
        ...


class Master:
    """The master as a source. It has everything."""

    name = MASTER
    lanes = 2

    def __init__(self, identity: NodeIdentity, bearer: Callable[[], str], session: Callable[[], aiohttp.ClientSession]):
        self._url = identity.master_url
        self._context = pinned_context(identity.ca_pem)
        self._bearer = bearer
        self._session = session

    async def read(self, file: ManifestFile, start: int, end: int) -> AsyncGenerator[bytes]:
        path = BLOB_PATH.format(sha256=file.sha256)
        async with self._get(path, file.path, {"Range": f"bytes={start}-{end - 1}"}) as response:
            _check_range(response, file, start, end, MASTER)
            async with aclosing(_body(response, end - start)) as body:
                async for data in body:
                    yield data

    async def hashes(self, file: ManifestFile) -> Sequence[bytes]:
        """sha256 of each piece. A file of one piece needs no question."""
        count = piece_count(file.size_bytes)
        if count <= 1:
            return [bytes.fromhex(file.sha256)] * count
        path = PIECES_PATH.format(sha256=file.sha256)
        async with self._get(path, file.path, {}, read_s=_HASHING_S) as response:
            _check_status(response, file, MASTER)
            text = await _whole(response)
        if len(text) != count * HASH_BYTES:
            raise FetchFailed(f"the master told {len(text) // HASH_BYTES} of {count} hashes of {file.path}")
        return [text[start : start + HASH_BYTES] for start in range(0, len(text), HASH_BYTES)]

    async def peers(self, digest: str) -> PeersReply:
        async with self._get(PEERS_PATH.format(digest=digest), "the list of peers", {}, read_s=_ASK_S) as response:
            if response.status != 200:
                return PeersReply()
            try:
                return msgspec.json.decode(await _whole(response), type=PeersReply)
            except msgspec.DecodeError as error:
                raise FetchFailed(f"the master's list of peers is not understood: {error}") from error

    @asynccontextmanager
    async def _get(
        self, path: str, what: str, headers: dict[str, str], read_s: float | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Raises FetchFailed, also for an answer that breaks off within the context."""
        timeout = _MASTER_TIMEOUT if read_s is None else aiohttp.ClientTimeout(connect=8, sock_read=read_s)
        try:
            async with self._session().get(
                self._url + path,
                headers={"Authorization": f"Bearer {self._bearer()}", "Accept-Encoding": "identity", **headers},
                ssl=self._context,
                server_hostname=MASTER_NAME,
                allow_redirects=False,
                timeout=timeout,
            ) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = error or type(error).__name__
            raise FetchFailed(f"{what} could not be fetched from the master: {said}") from error


class PeerSource:
    """Another server. `haves` is what it said last."""

    lanes = 2

    def __init__(self, peer: Peer, context: ssl.SSLContext, session: Callable[[], aiohttp.ClientSession]) -> None:
        self.name = peer.server_id
        self.peer = peer
        self.haves: dict[str, Have] = {}
        self._context = context
        self._session = session
        self._address = 0

    async def read(self, file: ManifestFile, start: int, end: int) -> AsyncGenerator[bytes]:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        path = PEER_BLOB_PATH.format(sha256=file.sha256)
        async with self._ask("GET", path, headers=headers) as response:
            _check_range(response, file, start, end, self.name)
            async with aclosing(_body(response, end - start)) as body:
                async for data in body:
                    yield data

    async def look(self, sha256s: Sequence[str]) -> dict[str, Have]:
        """What it has of these. Raises FetchFailed."""
        timeout = aiohttp.ClientTimeout(total=_ASK_S, connect=4)
        async with self._ask("POST", HAVE_PATH, data=msgspec.json.encode(sha256s), timeout=timeout) as response:
            if response.status != 200:
                raise FetchFailed(f"{self.name} answered {response.status}")
            try:
                self.haves = msgspec.json.decode(await _whole(response), type=HaveReply).blobs
            except msgspec.DecodeError as error:
                raise FetchFailed(f"{self.name} is not understood: {error}") from error
        return self.haves

    @asynccontextmanager
    async def _ask(self, method: str, path: str, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        more.setdefault("timeout", _PEER_TIMEOUT)
        try:
            async with self._session().request(
                method,
                self._url() + path,
                ssl=self._context,
                server_hostname=relay_name(DOOR, self.peer.server_id),
                allow_redirects=False,
                **more,
            ) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._address += 1  # it may have another that we can reach
            raise FetchFailed(f"{self.name}: {error or type(error).__name__}") from error

    def _url(self) -> str:
        address = self.peer.addresses[self._address % len(self.peer.addresses)]
        return f"https://{f'[{address}]' if ':' in address else address}:{self.peer.port}"


class Network:
    """All that blobs come from. One session, owned by who closes it."""

    def __init__(self, identity: NodeIdentity, bearer: Callable[[], str], pem: Path) -> None:
        """`pem`: this server's certificate and key, for peers."""
        self._identity = identity
        self._pem = pem
        self._http: aiohttp.ClientSession | None = None
        self._peer_context: ssl.SSLContext | None = None
        self.master = Master(identity, bearer, self._session)

    async def hashes(self, file: ManifestFile) -> Sequence[bytes]:
        return await self.master.hashes(file)

    async def look(self, digest: str) -> tuple[list[PeerSource], tuple[str, ...]]:
        reply = await self.master.peers(digest)
        peers = [one for one in reply.peers if one.server_id != self._identity.node_id and one.addresses and one.port]
        return [self.source(one) for one in peers], reply.neighbours

    def source(self, peer: Peer) -> PeerSource:
        return PeerSource(peer, self._context(), self._session)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._http = aiohttp.ClientSession(
                timeout=_MASTER_TIMEOUT, auto_decompress=False, connector=connector, read_bufsize=_BUFFER_BYTES
            )
        return self._http

    def _context(self) -> ssl.SSLContext:
        if self._peer_context is None:
            self._peer_context = peer_context(self._identity, self._pem)
        return self._peer_context


def peer_context(identity: NodeIdentity, pem: Path) -> ssl.SSLContext:
    """TLS to a peer's relay: it must be of our CA, and we show our own certificate and key, which are in `pem`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=identity.ca_pem)
    context.load_cert_chain(pem)
    return context


async def _body(response: aiohttp.ClientResponse, length: int) -> AsyncGenerator[bytes]:
    """Bytes of an answer. Of a long one the kernel wakes us for a good deal at once, not for every packet.

    So a slow connection costs hardly more than a fast one. Near the end any byte wakes us, or the last would be waited
    for in vain.
    """
    few = length > 2 * _NEAR_END_BYTES
    try:
        if few:
            _wake_at(response, _WAKE_BYTES)
        async for data in response.content.iter_chunked(_BUFFER_BYTES):
            length -= len(data)
            if few and length <= _NEAR_END_BYTES:
                few = False
                _wake_at(response, 1)
            yield data
    finally:
        if few:
            _wake_at(response, 1)


def _wake_at(response: aiohttp.ClientResponse, count_bytes: int) -> None:
    """Have the kernel tell of data when so much is there. A connection that was closed meanwhile is left alone."""
    connection = response.connection
    sock = connection.transport.get_extra_info("socket") if connection and connection.transport else None
    if sock is not None:
        with suppress(OSError, ValueError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count_bytes)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    text = bytearray()
    async for data in response.content.iter_any():
        text += data
        if len(text) > _MAX_REPLY_BYTES:
            raise FetchFailed("an answer that is far too long")
    return bytes(text)


def _check_range(response: aiohttp.ClientResponse, file: ManifestFile, start: int, end: int, name: str) -> None:
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if response.status == 206 and match is not None and (int(match[1]), int(match[2])) == (start, end - 1):
        return
    if response.status == 200 and (start, end) == (0, file.size_bytes):
        return
    if response.status in (200, 206):
        raise FetchFailed(f"{name} sent another range of {file.path} than it was asked for")
    _check_status(response, file, name)


def _check_status(response: aiohttp.ClientResponse, file: ManifestFile, name: str) -> None:
    if response.status == 404:
        raise Missing(f"{name} does not have {file.path} ({file.sha256[:12]})")
    if response.status in (429, 503):
        raise Busy(f"{name} is busy")
    if response.status != 200:
        raise FetchFailed(f"{name} answered {response.status} to the question for {file.path}")
