"""Where pieces come from: the master, over its pinned TLS, and peers, over their relays' mutual TLS."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec

from agent.errors import FetchFailed
from agent.join import MASTER_NAME, pinned_context
from agent.store.ranges import Endpoint, Ranges
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
_MASTER_CONNECT_S, _MASTER_READ_S = 8.0, 30.0
_PEER_CONNECT_S, _PEER_READ_S = 4.0, 10.0
_ASK_S = 10.0
_HASHING_S = 600.0
"""The master may have to read the whole file before it can answer."""
_MAX_REPLY_BYTES = 16 << 20
_MAX_ASKED = 5000
"""Blobs that a peer is asked about at once: its HTTP server takes 1 MiB. The rest has its turn when these are here."""
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

    def read(self, file: ManifestFile, start: int, into: memoryview) -> AsyncGenerator[int]:
        """Fill `into` with the bytes from `start` on; says, now and then, how many more are there.

        Raises FetchFailed.
        """
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
        url = urlsplit(identity.master_url)
        endpoint = Endpoint(url.hostname or "", url.port or 443, MASTER_NAME, self._context)
        self._path = url.path
        self.ranges = Ranges(lambda: endpoint, _MASTER_CONNECT_S, _MASTER_READ_S)

    async def read(self, file: ManifestFile, start: int, into: memoryview) -> AsyncGenerator[int]:
        path = self._path + BLOB_PATH.format(sha256=file.sha256)
        with _failing(file.path, MASTER):
            async with aclosing(_range(self.ranges, path, self._headers(), file, start, into, MASTER)) as counts:
                async for count in counts:
                    yield count

    async def hashes(self, file: ManifestFile) -> Sequence[bytes]:
        """sha256 of each piece. A file of one piece needs no question."""
        count = piece_count(file.size_bytes)
        if count <= 1:
            return [bytes.fromhex(file.sha256)] * count
        path = PIECES_PATH.format(sha256=file.sha256)
        async with self._get(path, file.path, _HASHING_S) as response:
            _check_status(response.status, file, MASTER)
            text = await _whole(response)
        if len(text) != count * HASH_BYTES:
            raise FetchFailed(f"the master told {len(text) // HASH_BYTES} of {count} hashes of {file.path}")
        return [text[start : start + HASH_BYTES] for start in range(0, len(text), HASH_BYTES)]

    async def peers(self, digest: str) -> PeersReply:
        async with self._get(PEERS_PATH.format(digest=digest), "the list of peers", _ASK_S) as response:
            if response.status != 200:
                return PeersReply()
            try:
                return msgspec.json.decode(await _whole(response), type=PeersReply)
            except msgspec.DecodeError as error:
                raise FetchFailed(f"the master's list of peers is not understood: {error}") from error

    @asynccontextmanager
    async def _get(self, path: str, what: str, read_s: float) -> AsyncIterator[aiohttp.ClientResponse]:
        """Raises FetchFailed, also for an answer that breaks off within the context."""
        with _failing(what, MASTER):
            async with self._session().get(
                self._url + path,
                headers=self._headers(),
                ssl=self._context,
                server_hostname=MASTER_NAME,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(connect=_MASTER_CONNECT_S, sock_read=read_s),
            ) as response:
                yield response

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._bearer()}"}


class PeerSource:
    """Another server. `haves` is what it said last."""

    lanes = 2

    def __init__(self, peer: Peer, context: ssl.SSLContext) -> None:
        self.name = peer.server_id
        self.peer = peer
        self.haves: dict[str, Have] = {}
        self._context = context
        self._address = 0
        self.ranges = Ranges(self._endpoint, _PEER_CONNECT_S, _PEER_READ_S)

    async def read(self, file: ManifestFile, start: int, into: memoryview) -> AsyncGenerator[int]:
        path = PEER_BLOB_PATH.format(sha256=file.sha256)
        with self._failing(file.path):
            async with aclosing(_range(self.ranges, path, {}, file, start, into, self.name)) as counts:
                async for count in counts:
                    yield count

    async def look(self, sha256s: Sequence[str]) -> dict[str, Have]:
        """What it has of these, of the first thousands at the most. Raises FetchFailed."""
        with self._failing("what it has"):
            status, text = await self.ranges.post(
                HAVE_PATH, msgspec.json.encode(sha256s[:_MAX_ASKED]), _MAX_REPLY_BYTES
            )
        if status != 200:
            raise FetchFailed(f"{self.name} answered {status}")
        try:
            self.haves = msgspec.json.decode(text, type=HaveReply).blobs
        except msgspec.DecodeError as error:
            raise FetchFailed(f"{self.name} is not understood: {error}") from error
        return self.haves

    def _endpoint(self) -> Endpoint:
        address = self.peer.addresses[self._address % len(self.peer.addresses)]
        return Endpoint(address, self.peer.port, relay_name(DOOR, self.peer.server_id), self._context)

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        with _failing(what, self.name):
            try:
                yield
            except (aiohttp.ClientError, OSError):
                self._address += 1  # it may have another that we can reach
                raise


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
        return PeerSource(peer, self._context())

    async def close(self) -> None:
        self.master.ranges.close()
        if self._http is not None:
            await self._http.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
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


@contextmanager
def _failing(what: str, name: str) -> Iterator[None]:
    """What may go wrong on the way, as FetchFailed."""
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:
        raise FetchFailed(f"{what} could not be fetched from {name}: {error or type(error).__name__}") from error


async def _range(
    ranges: Ranges, path: str, headers: Mapping[str, str], file: ManifestFile, start: int, into: memoryview, name: str
) -> AsyncGenerator[int]:
    end = start + len(into)
    async with ranges.get(path, {**headers, "Range": f"bytes={start}-{end - 1}"}) as answer:
        _check_range(answer.status, answer.headers.get("content-range", ""), file, start, end, name)
        if answer.length != len(into):
            raise FetchFailed(f"{name} sent {answer.length} of {len(into)} bytes of {file.path}")
        async with aclosing(answer.body(into)) as counts:
            async for count in counts:
                yield count


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    text = bytearray()
    async for data in response.content.iter_any():
        text += data
        if len(text) > _MAX_REPLY_BYTES:
            raise FetchFailed("an answer that is far too long")
    return bytes(text)


def _check_range(status: int, content_range: str, file: ManifestFile, start: int, end: int, name: str) -> None:
    match = _CONTENT_RANGE.match(content_range)
    if status == 206 and match is not None and (int(match[1]), int(match[2])) == (start, end - 1):
        return
    if status == 200 and (start, end) == (0, file.size_bytes):
        return
    if status in (200, 206):
        raise FetchFailed(f"{name} sent another range of {file.path} than it was asked for")
    _check_status(status, file, name)


def _check_status(status: int, file: ManifestFile, name: str) -> None:
    if status == 404:
        raise Missing(f"{name} does not have {file.path} ({file.sha256[:12]})")
    if status in (429, 503):
        raise Busy(f"{name} is busy")
    if status != 200:
        raise FetchFailed(f"{name} answered {status} to the question for {file.path}")
