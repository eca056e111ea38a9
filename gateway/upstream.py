"""Connections to engines: straight on this host, through the relay of the engine's server (mutual TLS) elsewhere, and
over public TLS to providers outside.

Each target has a keep-alive pool of its own, closed once the target is gone and nothing uses it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Collection
from dataclasses import dataclass, field

import structlog
from yarl import URL

from gateway.errors import EngineUnreachable, GatewayError
from gateway.http.client import Answer, AnswerBroken, AnswerLate, AnswerTooLarge, Connection
from wire import certs
from wire.feed import FeedRoute, Target

log = structlog.get_logger(__name__)

KEEPALIVE_S = 3.0
"""Shorter than any engine's own (llama-server and vLLM: 5 s), so that a kept connection is still alive."""
STALE_S = 0.25
"""A connection that breaks this soon after a request was sent, with no byte of an answer, had been closed before."""
MAX_ANSWER_BYTES = 256 * 1024 * 1024
_TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. What a request as a whole may take is the exchange's."""

    connect_s: float = 2.0
    first_byte_s: float = 600.0
    """From the request to the first byte of its answer (a long prompt on a slow engine, or waiting in its queue)."""
    idle_s: float = 300.0
    """Between two pieces of a stream."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where connections of a line go."""

    name: str
    """Of the instance, or of the route whose provider it is."""
    addresses: tuple[tuple[str, int], ...]
    host: bytes
    """The Host header."""
    tls: ssl.SSLContext | None = None
    server_hostname: str | None = None
    """Name that the peer's certificate must carry."""
    prefix: str = ""
    """In place of `/v1` of the path."""
    headers: bytes = b""
    """More header lines."""


class Line:
    """Pool of one peer."""

    def __init__(self, peer: Peer, timeouts: Timeouts) -> None:
        self.peer = peer
        self.gone = False
        """Nothing new is sent here; it ends with the last answer."""
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._best = 0  # index of the address that worked last
        self._heads: dict[str, bytes] = {}

    async def ask(self, path: str, content_type: bytes, body: bytes, request_id: bytes) -> Answer:
        """Send a request; returns once its answer is whole, or the headers of a stream are here.

        Close the answer. Raises:
            EngineUnreachable: no connection, or a kept one was stale; nothing was answered.
            GatewayError: 502 when the engine broke off, 504 when it did not answer in time.
        """
        connection = self._idle.pop() if self._idle else await self._connect()
        started = self._loop.time()
        self._busy.add(connection)
        head = b"%bcontent-type: %b\r\nx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            self._head(path),
            content_type,
            request_id,
            len(body),
        )
        answer = connection.ask(head + body, MAX_ANSWER_BYTES)
        try:
            await answer.ready
        except AnswerLate as error:
            raise GatewayError(504, "engine_timeout", "The engine did not answer in time.") from error
        except AnswerTooLarge as error:
            raise GatewayError(502, "engine_failed", "The engine's answer is too large.") from error
        except AnswerBroken as error:
            if error.untouched and self._loop.time() - started < STALE_S:
                raise EngineUnreachable("disconnected") from error
            if error.untouched:
                raise GatewayError(502, "engine_failed", "The engine broke off before it answered.") from error
            raise GatewayError(502, "engine_failed", _BROKE_OFF) from error
        except asyncio.CancelledError:
            answer.close()
            raise
        return answer

    def close(self) -> None:
        """Nothing new; idle connections end now, busy ones with their answer."""
        self.gone = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.cut()

    def cut(self) -> None:
        """End everything."""
        self.close()
        for connection in list(self._busy):
            connection.cut()

    @property
    def in_use(self) -> bool:
        return bool(self._busy)

    def tick(self, now: float) -> None:
        """Look for answers that take too long, and connections that were kept for too long."""
        for connection in list(self._busy):
            answer = connection.answer
            if answer is not None:
                begun = answer.is_stream and answer.size
                connection.expire(now, self._timeouts.idle_s if begun else self._timeouts.first_byte_s)
        if self._idle and now - self._idle[0].heard_at > KEEPALIVE_S:  # the longest unused are first
            old = [item for item in self._idle if now - item.heard_at > KEEPALIVE_S]
            self._idle = [item for item in self._idle if now - item.heard_at <= KEEPALIVE_S]
            for connection in old:
                connection.cut()

    async def _connect(self) -> Connection:
        peer, reason = self.peer, "no address"
        for turn in range(len(peer.addresses)):
            index = (self._best + turn) % len(peer.addresses)
            host, port = peer.addresses[index]
            try:
                async with asyncio.timeout(self._timeouts.connect_s):
                    _, connection = await self._loop.create_connection(
                        lambda: Connection(self._loop, self._free, self._lost),
                        host,
                        port,
                        ssl=peer.tls,
                        server_hostname=peer.server_hostname,
                    )
            except (OSError, TimeoutError, ssl.CertificateError) as error:
                reason = type(error).__name__
                continue
            self._best = index
            return connection
        raise EngineUnreachable(reason)

    def _free(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if self.gone:
            connection.cut()
        else:
            self._idle.append(connection)

    def _lost(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _head(self, path: str) -> bytes:
        head = self._heads.get(path)
        if head is None:
            full = path.replace("/v1", self.peer.prefix, 1) if self.peer.prefix else path
            lines = b"POST %b HTTP/1.1\r\nhost: %b\r\n%b" % (full.encode(), self.peer.host, self.peer.headers)
            head = self._heads[path] = lines
        return head


@dataclass(slots=True)
class _Entry:
    source: Target | FeedRoute
    line: Line = field(repr=False)


class Pool:
    """Lines by instance. `relay_tls`: our certificate and the pinned CA; None: engines of this host only."""

    def __init__(self, host_id: str, relay_tls: ssl.SSLContext | None, timeouts: Timeouts | None = None) -> None:
        self._host_id = host_id
        self._relay_tls = relay_tls
        self._timeouts = timeouts or Timeouts()
        self._public_tls: ssl.SSLContext | None = None
        self._entries: dict[str, _Entry] = {}
        self._leaving: list[Line] = []
        self._ticker: asyncio.TimerHandle | None = None

    def line(self, target: Target) -> Line:
        """To an instance."""
        entry = self._entries.get(target.instance_id)
        if entry is not None and (entry.source is target or entry.source == target):
            return entry.line
        return self._replace(target.instance_id, target, self._peer(target))

    def outside_line(self, route: FeedRoute) -> Line:
        """To the provider of a route."""
        name = outside_name(route)
        entry = self._entries.get(name)
        if entry is not None and (entry.source is route or entry.source == route):
            return entry.line
        return self._replace(name, route, self._outside_peer(name, route))

    def retain(self, known: Collection[str]) -> None:
        """Close lines to what is not in `known` once nothing uses them."""
        for name in [name for name in self._entries if name not in known]:
            self._leave(self._entries.pop(name).line)

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        for line in [entry.line for entry in self._entries.values()] + self._leaving:
            line.cut()
        self._entries.clear()
        self._leaving.clear()
        await asyncio.sleep(0)  # transports that were cut tell so in the next turn of the loop

    def _replace(self, name: str, source: Target | FeedRoute, peer: Peer) -> Line:
        old = self._entries.pop(name, None)
        if old is not None:
            self._leave(old.line)
        line = Line(peer, self._timeouts)
        self._entries[name] = _Entry(source, line)
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(_TICK_S, self._tick)
        return line

    def _leave(self, line: Line) -> None:
        line.close()
        if line.in_use:
            self._leaving.append(line)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for entry in list(self._entries.values()):
            entry.line.tick(now)
        for line in list(self._leaving):
            line.tick(now)
        self._leaving = [line for line in self._leaving if line.in_use]
        self._ticker = loop.call_later(_TICK_S, self._tick)

    def _peer(self, target: Target) -> Peer:
        if target.host_id == self._host_id:
            return Peer(target.instance_id, (("127.0.0.1", target.port),), b"127.0.0.1:%d" % target.port)
        if self._relay_tls is None:
            return Peer(target.instance_id, (), b"-")
        return Peer(
            target.instance_id,
            tuple((name, target.relay_port) for name in target.relay_addresses),
            b"127.0.0.1:%d" % target.port,
            self._relay_tls,
            certs.relay_name(target.instance_id, target.server_id),
        )

    def _outside_peer(self, name: str, route: FeedRoute) -> Peer:
        provider = route.provider
        if provider is None:
            return Peer(name, (), b"-")
        url = URL(provider.base_url.rstrip("/"))
        host, port = url.host or "", url.port or 443
        is_tls = url.scheme == "https"
        if is_tls and self._public_tls is None:
            self._public_tls = ssl.create_default_context()
        return Peer(
            name,
            ((host, port),),
            url.authority.encode(),
            self._public_tls if is_tls else None,
            host if is_tls else None,
            url.raw_path.rstrip("/") or "/v1",
            b"authorization: Bearer %b\r\naccept-encoding: identity\r\n" % provider.api_key.encode(),
        )


def outside_name(route: FeedRoute) -> str:
    """Under which the line, the in-flight count and the health of a route's provider are kept."""
    return f"provider:{route.id}"


_BROKE_OFF = "The engine broke off in the middle of its answer: it is not complete."
