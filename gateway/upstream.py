"""Connections to engines: straight on this host, through the relay of the engine's server (mutual TLS) elsewhere.

Each target has a keep-alive pool of its own, closed once the target is gone and nothing uses it.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import Collection
from dataclasses import dataclass, field

import aiohttp
import structlog
from yarl import URL

from gateway.errors import EngineUnreachable, GatewayError
from wire import certs
from wire.feed import Target

log = structlog.get_logger(__name__)

KEEPALIVE_S = 3.0
"""Shorter than any engine's own (llama-server and uvicorn: 5 s), so that a kept connection is still alive."""
STALE_S = 0.25
"""A kept connection that breaks this soon after a request was sent had been closed by the engine before."""
_INLINE_BODY_BYTES = 512 * 1024
_SKIPPED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


@dataclass(slots=True)
class _Line:
    """Pool of one target."""

    target: Target
    session: aiohttp.ClientSession
    bases: tuple[str, ...]
    server_hostname: str | None
    urls: dict[tuple[str, str], URL] = field(default_factory=dict)
    best: int = 0
    """Index of the address that worked last."""
    users: int = 0

    def url(self, base: str, path: str) -> URL:
        url = self.urls.get((base, path))
        if url is None:
            url = self.urls[(base, path)] = URL(base + path)
        return url


class Pool:
    """Keep-alive connections by instance. `relay_tls`: our certificate and the pinned CA; None: this host only."""

    def __init__(
        self, host_id: str, relay_tls: ssl.SSLContext | None, *, connect_s: float = 2.0, read_s: float = 600.0
    ) -> None:
        self._host_id = host_id
        self._tls = relay_tls
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s)
        self._lines: dict[str, _Line] = {}
        self._using: dict[aiohttp.ClientResponse, _Line] = {}
        self._known: Collection[str] = ()
        self._closing: set[asyncio.Task[None]] = set()

    async def post(self, target: Target, path: str, body: bytes, request_id: str) -> aiohttp.ClientResponse:
        """Send a request; returns once the engine's headers are here. The caller closes it through `release`.

        Raises:
            EngineUnreachable: no connection, or a kept one was stale; nothing was answered.
            GatewayError: 502 when the engine broke off, 504 when it did not answer in time.
        """
        line = self._line(target)
        line.users += 1
        try:
            response = await self._post(line, path, body, request_id)
        except BaseException:
            self._unuse(line)
            raise
        self._using[response] = line
        return response

    async def _post(self, line: _Line, path: str, body: bytes, request_id: str) -> aiohttp.ClientResponse:
        loop = asyncio.get_running_loop()
        reason = "no address"
        for turn in range(len(line.bases)):
            index = (line.best + turn) % len(line.bases)
            started = loop.time()
            try:
                response = await line.session.post(
                    line.url(line.bases[index], path),
                    data=body if len(body) < _INLINE_BODY_BYTES else io.BytesIO(body),
                    headers={"content-type": "application/json", "x-request-id": request_id},
                    allow_redirects=False,
                    server_hostname=line.server_hostname,
                )
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                reason = type(error).__name__
                continue
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if loop.time() - started < STALE_S:
                    raise EngineUnreachable("disconnected") from error
                raise GatewayError(502, "engine_failed", "The engine broke off before it answered.") from error
            except aiohttp.ServerTimeoutError as error:
                raise GatewayError(504, "engine_timeout", "The engine did not answer in time.") from error
            except aiohttp.ClientError as error:
                raise GatewayError(502, "engine_failed", "The engine's answer was not understood.") from error
            line.best = index
            return response
        raise EngineUnreachable(reason)

    def release(self, response: aiohttp.ClientResponse) -> None:
        """Done with an answer: a whole one gives its connection back, any other one is cut at once."""
        response.close()
        line = self._using.pop(response, None)
        if line is not None:
            self._unuse(line)

    def retain(self, known: Collection[str]) -> None:
        """Instances that are routed to now; the pools of others close when their last request has ended."""
        self._known = known
        for line in list(self._lines.values()):
            if line.target.instance_id not in known and not line.users:
                self._drop(line)

    async def close(self) -> None:
        for line in {id(line): line for line in (*self._lines.values(), *self._using.values())}.values():
            self._drop(line)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _line(self, target: Target) -> _Line:
        line = self._lines.get(target.instance_id)
        if line is not None and line.target is not target:
            if (line.bases, line.server_hostname) == self._way(target):
                line.target = target
            else:  # it moved: what runs over the old way ends there
                del self._lines[target.instance_id]
                if not line.users:
                    self._drop(line)
                line = None
        if line is None:
            line = self._lines[target.instance_id] = self._make(target)
        return line

    def _way(self, target: Target) -> tuple[tuple[str, ...], str | None]:
        """(base URLs, name that the peer's certificate must carry) of a target."""
        if target.host_id == self._host_id:
            return (f"http://127.0.0.1:{target.port}",), None
        if self._tls is None:
            return (), None
        bases = tuple(f"https://{_bracketed(name)}:{target.relay_port}" for name in target.relay_addresses)
        return bases, certs.relay_name(target.instance_id, target.server_id)

    def _make(self, target: Target) -> _Line:
        bases, server_hostname = self._way(target)
        tls: ssl.SSLContext | bool = True if server_hostname is None or self._tls is None else self._tls
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=tls, ttl_dns_cache=30)
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_SKIPPED,
            trust_env=False,
        )
        return _Line(target, session, bases, server_hostname)

    def _unuse(self, line: _Line) -> None:
        line.users -= 1
        name = line.target.instance_id
        if not line.users and (name not in self._known or self._lines.get(name) is not line):
            self._drop(line)

    def _drop(self, line: _Line) -> None:
        if self._lines.get(line.target.instance_id) is line:
            del self._lines[line.target.instance_id]
        task = asyncio.create_task(line.session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
