"""Servers as a source of blobs: what the master's disk lost, the fleet may still have."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import structlog
from django.conf import settings
from django.utils import timezone

from fleet.peers import peers
from models_registry.download.partial import Partial
from models_registry.models import ModelVersion
from wire.certs import relay_name
from wire.manifest import ManifestFile
from wire.pieces import DOOR, PEER_BLOB_PATH, PIECE_BYTES, Peer, piece_count, piece_span

log = structlog.get_logger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=4, sock_read=15)
_CHUNK_BYTES = 1 << 20
_CHECKPOINT_EVERY = 16
"""Pieces; a piece has `PIECE_BYTES`."""


def from_servers(version: ModelVersion, file: ManifestFile, place: Path) -> bool:
    """Put a file of a version whole and verified at `place`, from the first server that has it so.

    Servers that got the version without its files that can run code know it by another digest.
    """
    now = timezone.now()
    whole, by_name = peers.holders(version.digest, "", now), peers.holders(str(version), "", now)
    for peer in {peer.server_id: peer for peer in (*whole, *by_name)}.values():
        for address in peer.addresses:
            try:
                asyncio.run(_fetch(peer, address, file, place))
                return True
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                said = str(error) or type(error).__name__
                log.info("blob.server_failed", server=peer.server_id, path=file.path, error=said)
    return False


async def _fetch(peer: Peer, address: str, file: ManifestFile, place: Path) -> None:
    """On with what an earlier try left. Raises ValueError for wrong bytes; these are dropped."""
    partial = Partial(place, file.size_bytes, file.sha256)
    if partial.done():
        return
    url = f"https://{f'[{address}]' if ':' in address else address}:{peer.port}"
    url += PEER_BLOB_PATH.format(sha256=file.sha256)
    partial.open()
    try:
        connector = aiohttp.TCPConnector(ssl=_context())
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, auto_decompress=False) as session:
            first = partial.spans.prefix_end // PIECE_BYTES
            for index in range(first, piece_count(file.size_bytes)):
                await _piece(session, url, relay_name(DOOR, peer.server_id), partial, index)
                if index % _CHECKPOINT_EVERY == _CHECKPOINT_EVERY - 1:
                    partial.checkpoint()
        partial.hash_on()
        if not partial.is_whole or partial.digest() != file.sha256:
            partial.drop()
            raise ValueError("the bytes it sent do not fit the file's sha256")
        partial.finish(file.sha256)
    finally:
        partial.close()


async def _piece(session: aiohttp.ClientSession, url: str, name: str, partial: Partial, index: int) -> None:
    start, end = piece_span(index, partial.size)
    headers = {"Range": f"bytes={start}-{end - 1}"}
    async with session.get(url, headers=headers, server_hostname=name, allow_redirects=False) as answer:
        if answer.status != 206:
            raise ValueError(f"it answered {answer.status}")
        at = start
        async for data in answer.content.iter_chunked(_CHUNK_BYTES):
            if at + len(data) > end:
                raise ValueError("it sent more than it was asked for")
            partial.write(at, data)
            at += len(data)
        if at < end:
            raise ValueError("it sent less than it was asked for")
    partial.hash_on()


def _context() -> ssl.SSLContext:
    """The master shows its own certificate, and believes servers of its own CA only."""
    folder = Path(settings.CA_DIR)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(folder / "ca.pem")
    context.load_cert_chain(folder / "master.pem", folder / "master.key")
    return context
