"""HTTP/1.1 server side: bytes of a connection become requests, one after the other, each given to one handler task.

llhttp (through httptools) is the parser: strict about what smuggling needs (conflicting lengths, bad chunks, bare line
feeds). What it leaves open is bounded here: sizes of heads and of framing, how long a client may take, pipelined
requests, answers that nobody reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools
import structlog

from gateway.http.request import Header, Request

log = structlog.get_logger(__name__)

Handler = Callable[[Request], Awaitable[None]]
BadRequest = Callable[[int, str], tuple[list[Header], bytes]]
"""(headers, body) of an answer to what is no request, from status and words."""

_UNTAKEN_BYTES = 128 * 1024
"""Of a body that nobody has asked for yet: beyond it the connection is not read on."""
_FRAMING_BYTES = 64 * 1024
_WRITE_BUFFER_BYTES = 64 * 1024
_MAX_PIPELINED = 16
_TICK_S = 1.0
_LINGER_S = 3.0
_RECENT_S, _GRACE_S = 1.0, 0.25
_LINGER_BYTES = 256 * 1024 * 1024
_SLOWEST_BODY = 1024  # bytes/s, after `body_s`


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a client may take. Times in seconds."""

    head_bytes: int = 64 * 1024
    head_s: float = 15.0
    idle_s: float = 75.0
    body_s: float = 30.0
    """Without a byte of the body; and when slower than 1 KiB/s on average."""
    unread_s: float = 300.0
    """An answer of which the client takes nothing."""
    connections: int = 20_000


class Server:
    """Listens, and owns its connections."""

    def __init__(self, handler: Handler, bad_request: BadRequest, bounds: Bounds | None = None) -> None:
        self.handler = handler
        self.bad_request = bad_request
        self.bounds = bounds or Bounds()
        self.connections: set[Connection] = set()
        self.closing = False
        self._listener: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"ssl_handshake_timeout": 10.0, "ssl_shutdown_timeout": 5.0} if tls else {}
        self._listener = await loop.create_server(
            lambda: Connection(self, loop), sock=listener, ssl=tls, backlog=2048, **options
        )
        self._ticker = loop.call_later(_TICK_S, self._tick)

    async def close(self, drain_s: float) -> None:
        """Take no more requests; let those in flight end for up to `drain_s`, then break them off."""
        self.closing = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.leave()
        if self.connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), drain_s)
        tasks = [task for connection in self.connections if (task := connection.task) is not None]
        for connection in list(self.connections):
            connection.cut()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        if self._ticker is not None:
            self._ticker.cancel()

    def drop(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            connection.tick(now)
        self._ticker = loop.call_later(_TICK_S, self._tick)


class Connection(asyncio.Protocol):
    """One connection of a client; a `Line` of its requests."""

    __slots__ = (
        "_broken",
        "_foreign",
        "_head_bytes",
        "_head_done",
        "_headers",
        "_jammed_at",
        "_lingered",
        "_lingering",
        "_loop",
        "_parser",
        "_paused",
        "_queue",
        "_raw_bytes",
        "_reading",
        "_server",
        "_since",
        "_size",
        "_target",
        "_transport",
        "peer",
        "request",
        "task",
    )

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self._parser = httptools.HttpRequestParser(self)
        self._reading: Request | None = None  # whose body is coming in
        self._queue: list[Request] = []
        self.request: Request | None = None  # being answered
        self.task: asyncio.Task[None] | None = None
        self._since = loop.time()  # of the present wait: for a head, or for more of a body
        self._size = 0
        self._raw_bytes = 0
        self._head_bytes = 0
        self._head_done = True
        self._headers: dict[bytes, bytes] = {}
        self._target = b""
        self._paused = False
        self._jammed_at = 0.0
        self._foreign = False
        self._broken = False  # what comes from now on is no HTTP
        self._lingering = False
        self._lingered = 0
        self.peer = ""

    # ---------------------------------------------------------------------------------------- asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) and peer else ""
        self._server.connections.add(self)
        if len(self._server.connections) > self._server.bounds.connections:
            self._refuse(503, "Too many connections. Try again shortly.")
        elif self._server.closing:  # it was accepted at that very moment
            self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.drop(self)
        self._queue.clear()
        for request in (self.request, self._reading):
            if request is not None:
                request.lose()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self._transport.abort()
            return
        if not self._head_done or self._reading is None:
            self._head_bytes += len(data)
        else:
            self._raw_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "This service speaks HTTP/1.1 only: no websockets, no tunnels.")
        except httptools.HttpParserError as error:
            self._bad(str(error))
        else:
            if not self._head_done and self._head_bytes > self._server.bounds.head_bytes:
                self._refuse(431, "The head of the request is too large.")
            elif self._foreign:
                self._refuse(505, "This service speaks HTTP/1.1 only.")
            elif self._raw_bytes - self._size > _FRAMING_BYTES + 8 * self._size:
                self._bad("more framing than body")

    def pause_writing(self) -> None:
        self._jammed_at = self._loop.time()

    def resume_writing(self) -> None:
        self._jammed_at = 0.0
        if self.request is not None and self.request.on_room is not None:
            self.request.on_room()

    # ---------------------------------------------------------------------------------------- llhttp's calls

    def on_message_begin(self) -> None:
        self._head_done = False
        self._headers = {}
        self._target = b""
        self._since = self._loop.time()
        self._size = self._raw_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # a trailer is of no use
            name = name.lower()
            if self._headers.setdefault(name, value) is not value and name == b"x-forwarded-for":
                self._headers[name] += b"," + value  # what a proxy of ours added must be seen

    def on_headers_complete(self) -> None:
        self._head_done = True
        self._head_bytes = 0
        headers, parser = self._headers, self._parser
        target = self._target
        if target[:1] != b"/":
            target = _origin_form(target)
        path, _, query = target.decode("latin-1").partition("?")
        request = Request(self, parser.get_method().decode("latin-1"), path, query, headers, self.peer)
        request.keep_alive = parser.should_keep_alive() and not self._server.closing
        version = parser.get_http_version()
        request.chunked = version == "1.1"
        length = headers.get(b"content-length")
        if length is not None:
            request.length = int(length)  # llhttp has checked it
        self._reading = request
        self._foreign = version not in ("1.1", "1.0")
        if self._foreign or parser.should_upgrade():
            return  # refused by data_received
        if self.request is None and not self._queue:
            self._serve(request)
        else:
            self._queue.append(request)
            if len(self._queue) >= _MAX_PIPELINED:
                self._pause()

    def on_body(self, body: bytes) -> None:
        request = self._reading
        if request is None:
            return
        self._size += len(body)
        if request.feed(body) > _UNTAKEN_BYTES:
            self._pause()

    def on_message_complete(self) -> None:
        request, self._reading = self._reading, None
        if request is not None:
            request.complete = True
            request.wake()
        self._since = self._loop.time()

    # ---------------------------------------------------------------------------------------- a request's line

    @property
    def jammed(self) -> bool:
        return self._jammed_at != 0.0

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def take_body(self) -> None:
        if self._paused:
            self._since = self._loop.time()
            self._resume()

    def end(self, *, keep: bool) -> None:
        self.request = None
        self._since = self._loop.time()
        if keep and not self._server.closing:
            return
        self._queue.clear()
        if self._reading is None and not self._broken:
            self._transport.close()
        else:
            self._linger()

    def cut(self) -> None:
        self._transport.abort()

    # ---------------------------------------------------------------------------------------- inside

    def _serve(self, request: Request) -> None:
        self.request = request
        self.task = request.task = self._loop.create_task(self._handle(request))

    async def _handle(self, request: Request) -> None:
        try:
            await self._server.handler(request)
        except Exception:
            log.exception("http.handler_failed", path=request.path)
            if not request.started:
                request.answer(500, *self._server.bad_request(500, "Something went wrong here. Try again."))
        finally:
            if self.task is request.task:
                self.task = None
            request.task = None  # a circle otherwise
            if self.request is request and not request.gone:  # the handler left it open: nobody will answer it
                self._transport.abort()
        if self._queue and self.request is None:
            following = self._queue.pop(0)
            self._resume()
            self._serve(following)

    def _linger(self) -> None:
        """Close, but read on for a moment: closing on a client that is still sending would reset the connection, and
        take the answer away from it."""
        self._lingering = True
        self._resume()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _bad(self, why: str) -> None:
        """What came is not HTTP. A handler that waits for the body answers it, else it is answered here."""
        self._broken = True
        reading = self._reading
        if reading is not None and reading is self.request:
            reading.bad_body = True
            reading.keep_alive = False
            reading.wake()
            self._pause()
            return
        self._refuse(400, f"This is not a valid HTTP/1.1 request: {why}.")

    def _refuse(self, status: int, why: str) -> None:
        """Answer without a handler, and close. Behind an answer that is under way nothing can be said."""
        self._broken = True
        current = self.request
        if current is not None and (current.started or current is not self._reading):
            current.keep_alive = False
            self._queue.clear()
            self._pause()
            return
        if current is not None:
            current.lose()
        headers, body = self._server.bad_request(status, why)
        self.request = stray = Request(self, "GET", "", "", {}, self.peer)
        stray.answer(status, headers, body)  # it is not complete: so the connection ends

    def leave(self) -> None:
        """The server closes: a busy connection ends after its answer, an idle one now.

        One that was busy a moment ago may have its next request on the way already: that one is still answered, and
        told to close.
        """
        if self.request is not None:
            self.request.keep_alive = False
            self._queue.clear()
        elif self._loop.time() - self._since < _RECENT_S:
            self._loop.call_later(_GRACE_S, self._leave_if_idle)
        else:
            self._transport.close()

    def _leave_if_idle(self) -> None:
        if self.request is None:
            self._transport.close()

    def tick(self, now: float) -> None:
        """Look for a client that takes too long. `now` is the loop's time."""
        bounds = self._server.bounds
        if self._jammed_at and now - self._jammed_at > bounds.unread_s:
            self._transport.abort()
        elif self._lingering:
            if now - self._since > _LINGER_S:
                self._transport.abort()
        elif self.request is None and self._reading is None:
            if not self._head_done and now - self._since > bounds.head_s:
                self._refuse(408, "The head of the request did not come in time.")
            elif self._head_done and now - self._since > bounds.idle_s:
                self._transport.close()
        elif self._reading is not None and not self._paused:
            waited = now - self._since
            if waited > bounds.body_s and self._size < waited * _SLOWEST_BODY:
                self._refuse(408, "The body of the request did not come in time.")


def _origin_form(target: bytes) -> bytes:
    """Path and query of an absolute target (RFC 9112, 3.2.2)."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return b"/" if target == b"*" else target
    slash = rest.find(b"/")
    return rest[slash:] if slash >= 0 else b"/"
