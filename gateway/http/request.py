"""One request of a client and the answer to it, as a handler sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Protocol

Header = tuple[bytes, bytes]

_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"


_SMALL_BODY_BYTES = 64 * 1024
"""A body that was answered before it was here is read and forgotten up to this size; else the connection ends."""


class BodyTooLarge(Exception):
    """The client sends more than was allowed."""


class ClientGone(Exception):
    """The client left before its request was complete."""


class BadBody(Exception):
    """The body is not HTTP: a bad chunk, for one."""


class Line(Protocol):
    """What a request needs of its connection."""

    def write(self, data: bytes) -> None: ...

    def take_body(self) -> None:
        """Somebody waits for the body now: read on."""

    def end(self, *, keep: bool) -> None:
        """The answer is complete. Without `keep` the connection ends."""

    def cut(self) -> None:
        """End the connection at once, in the middle of an answer."""

    @property
    def jammed(self) -> bool:
        """The client does not take what was written as fast as it comes."""


class Request:
    """Made once its headers are here; the body may still be on its way.

    `headers` has lower-case names; of a repeated one the first counts. Every request must be ended by exactly one of
    `answer`, `finish`, `cut`, unless `gone` is set.
    """

    __slots__ = (
        "_body_waiter",
        "_continue",
        "_line",
        "_parts",
        "_size",
        "bad_body",
        "chunked",
        "complete",
        "gone",
        "headers",
        "keep_alive",
        "length",
        "method",
        "on_gone",
        "on_room",
        "path",
        "peer",
        "query",
        "started",
        "task",
    )

    def __init__(self, line: Line, method: str, path: str, query: str, headers: dict[bytes, bytes], peer: str) -> None:
        self._line = line
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.peer = peer
        """Address of the client's end of the connection, without its port."""
        self.keep_alive = True
        self.chunked = True
        """The client understands chunked answers (HTTP/1.1)."""
        self.length: int | None = None
        """Of the body, when the client said so."""
        self.complete = False
        """The whole body is here."""
        self.bad_body = False
        self.started = False
        """The answer has begun."""
        self.gone = False
        """The connection is lost."""
        self.task: asyncio.Task[None] | None = None
        """In which it is handled."""
        self.on_gone: Callable[[], None] | None = None
        """Called once when the client leaves before its answer is complete."""
        self.on_room: Callable[[], None] | None = None
        """Called when a client that jammed a streamed answer takes more again."""
        self._parts: list[bytes] = []
        self._size = 0
        self._body_waiter: asyncio.Future[None] | None = None
        self._continue = headers.get(b"expect", b"").lower() == b"100-continue"

    # ---------------------------------------------------------------------------------------- the body

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge, ClientGone, BadBody."""
        if self.complete:
            if self._size > limit:
                raise BodyTooLarge
        elif self.length is not None and self.length > limit:
            raise BodyTooLarge
        else:
            await self._collect(limit)
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _collect(self, limit: int) -> None:
        if self._continue and not self._size:
            self._line.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._line.take_body()
        while not self.complete:
            if self.bad_body:
                raise BadBody
            if self.gone:
                raise ClientGone
            if self._size > limit:
                raise BodyTooLarge
            waiter = self._body_waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                self._body_waiter = None
        if self._size > limit:
            raise BodyTooLarge

    def feed(self, part: bytes) -> int:
        """Bytes of the body that nobody has taken yet. Called by the connection."""
        self._parts.append(part)
        self._size += len(part)
        self.wake()
        return 0 if self._body_waiter is not None else self._size

    def wake(self) -> None:
        """Something changed for who waits for the body. Called by the connection."""
        waiter = self._body_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def lose(self) -> None:
        """The client is gone. Called by the connection."""
        if self.gone:
            return
        self.gone = True
        self.wake()
        if self.on_gone is not None:
            self.on_gone()

    # ---------------------------------------------------------------------------------------- the answer

    @property
    def jammed(self) -> bool:
        """The client does not take a streamed answer as fast as it comes; `on_room` tells when it does again."""
        return self._line.jammed

    def answer(self, status: int, headers: Sequence[Header], body: bytes, lines: bytes = b"") -> None:
        """A whole answer. `lines` are more header lines, as they go over the wire, each with its end."""
        if self.gone:
            return
        self.started = True
        length = b"" if status == 204 else b"content-length: %d\r\n" % len(body)
        head = self._head(status, headers, lines + length)
        self._line.write(head if self.method == "HEAD" else head + body)
        self._line.end(keep=self._may_keep())

    def start(self, status: int, headers: Sequence[Header], lines: bytes = b"") -> None:
        """Begin a streamed answer; `lines` as for `answer`."""
        if self.gone:
            return
        self.started = True
        if not self.chunked:
            self.keep_alive = False
        framing = b"transfer-encoding: chunked\r\n" if self.chunked else b""
        self._line.write(self._head(status, headers, lines + framing))

    def write(self, data: bytes) -> None:
        """A piece of a streamed answer, not empty."""
        if not self.gone:
            self._line.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def finish(self) -> None:
        """The streamed answer is complete."""
        if self.gone:
            return
        if self.chunked:
            self._line.write(b"0\r\n\r\n")
        self._line.end(keep=self._may_keep())

    def cut(self) -> None:
        """Break off: the client must not take what it got for a whole answer."""
        if not self.gone:
            self._line.cut()

    def _may_keep(self) -> bool:
        if not self.keep_alive:
            return False
        return self.complete or (self.length is not None and self.length - self._size <= _SMALL_BODY_BYTES)

    def _head(self, status: int, headers: Sequence[Header], lines: bytes) -> bytes:
        parts = [_LINES[status] if status in _LINES else b"HTTP/1.1 %d -\r\n" % status]
        parts += [b"%b: %b\r\n" % header for header in headers]
        parts.append(lines)
        parts.append(b"\r\n" if self._may_keep() else b"connection: close\r\n\r\n")
        return b"".join(parts)
