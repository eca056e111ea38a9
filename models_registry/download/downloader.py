"""The entry: a downloader with its connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import aiohttp

from models_registry.download.guard import guarded_sockets
from models_registry.download.lanes import Control
from models_registry.download.partial import Done
from models_registry.download.transfer import SPARE_BYTES, Progress, Transfer, Wanted

CONNECTIONS = 16
_READ_BYTES = 1 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=30)


class Downloader:
    """Use `running`."""

    def __init__(self, session: aiohttp.ClientSession, connections: int) -> None:
        self.session = session
        self._connections = connections

    async def fetch(
        self,
        wanted: Sequence[Wanted],
        *,
        control: Control | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        spare_bytes: int = SPARE_BYTES,
    ) -> list[Done]:
        """All of them, whole and verified, each at its path; in the same order. `progress` is called a few times a
        second.

        Raises NoSpace, SourceRefused, SourceGone, SourceChanged, SourceUnreachable, WrongHash, ImportCancelled; what
        was fetched stays for the next time.
        """
        transfer = Transfer(self.session, self._connections, wanted, control or Control(), progress, spare_bytes)
        return await transfer.run()


@asynccontextmanager
async def running(connections: int = CONNECTIONS, *, loopback: bool = True) -> AsyncIterator[Downloader]:
    """A downloader with connections of its own. Without `loopback` it connects to no server on this machine."""
    connector = aiohttp.TCPConnector(
        limit=connections,
        limit_per_host=connections,
        keepalive_timeout=30,
        socket_factory=guarded_sockets(loopback=loopback),
    )
    async with aiohttp.ClientSession(
        connector=connector, timeout=_TIMEOUT, auto_decompress=False, read_bufsize=_READ_BYTES
    ) as session:
        yield Downloader(session, connections)
