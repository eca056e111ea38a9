"""HTTP/1.1 client side: connections that are kept, one request at a time on each, answers whole or as a stream.

llhttp (through httptools) is the parser. An answer with a stream of events is handed over once its headers are here;
any other one when it is complete, so that a request costs one wake-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import httptools

_READ_AHEAD_BYTES = 256 * 1024
"""Of a stream that nobody takes yet."""


class AnswerBroken(Exception):
    """The connection ended, or what came is not HTTP, before the answer was complete."""

    def __init__(self, reason: str, *, untouched: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.untouched = untouched
        """Not a byte of the answer came."""


class AnswerTooLarge(AnswerBroken):
    """More than `max_bytes` of an answer that is no stream."""


class AnswerLate(AnswerBroken):
    """Nothing came for too long."""


class Sink(Protocol):
    """Takes a stream as it comes."""

    def take(self, data: bytes) -> None: ...

    def end(self, error: AnswerBroken | None) -> None:
        """Called once: None when the answer is complete."""


class Answer:
    """Of one request."""

    __slots__ = (
        "_connection",
        "_sink",
        "broken",
        "close_delimited",
        "complete",
        "headers",
        "is_stream",
        "max_bytes",
        "parts",
        "ready",
        "size",
        "status",
    )

    def __init__(self, connection: Connection, ready: asyncio.Future[None], max_bytes: int) -> None:
        self._connection: Connection | None = connection
        self._sink: Sink | None = None
        self.ready = ready
        """Resolved when the answer is whole, or the headers of a stream are here; fails with AnswerBroken."""
        self.max_bytes = max_bytes
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.is_stream = False
        self.close_delimited = False
        self.parts: list[bytes] = []
        self.size = 0
        self.complete = False
        self.broken: AnswerBroken | None = None

    @property
    def content_type(self) -> bytes:
        return self.headers.get(b"content-type", b"")

    def body(self) -> bytes:
        """Of an answer that is whole."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)

    def pipe(self, sink: Sink) -> None:
        """Give a stream to `sink`: what has come already now, the rest as it comes."""
        self._sink = sink
        parts, self.parts = self.parts, []
        for part in parts:
            sink.take(part)
        if self.complete or self.broken is not None:
            sink.end(self.broken)
        elif self._connection is not None:
            self._connection.resume()

    def pause(self) -> None:
        """Take no more for now."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def close(self) -> None:
        """Not wanted any longer: an answer that is not complete is cut, so that the engine stops working on it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cut()

    # ---------------------------------------------------------------------------------------- the connection's calls

    def take(self, data: bytes) -> bool:
        """Returns False when the connection should stop reading."""
        if self._sink is not None:
            self._sink.take(data)
            return True
        self.parts.append(data)
        self.size += len(data)
        return not self.is_stream or self.size <= _READ_AHEAD_BYTES

    def finished(self) -> None:
        self.complete = True
        self._connection = None
        if self._sink is not None:
            self._sink.end(None)
        elif not self.ready.done():
            self.ready.set_result(None)

    def failed(self, error: AnswerBroken) -> None:
        self.broken = error
        self._connection = None
        if self._sink is not None:
            self._sink.end(error)
        elif not self.ready.done():
            self.ready.set_exception(error)


class Connection(asyncio.Protocol):
    """One connection to a server. `on_free(connection)` and `on_lost(connection)` tell its pool."""

    __slots__ = (
        "_head_bytes",
        "_loop",
        "_on_free",
        "_on_lost",
        "_parser",
        "_paused",
        "_pieces",
        "_reusable",
        "_stray",
        "_transport",
        "_untouched",
        "_whole",
        "answer",
        "heard_at",
        "lost",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_free: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._on_free = on_free
        self._on_lost = on_lost
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self._parser = httptools.HttpResponseParser(self)
        self._paused = False
        self._untouched = True
        self._reusable = True
        self._stray = False
        self._whole: Answer | None = None
        self._head_bytes = 0
        self._pieces: list[bytes] = []
        self.answer: Answer | None = None
        self.heard_at = 0.0
        """Loop time at which something came last, or the request was sent."""
        self.lost = False

    def ask(self, request: bytes, max_bytes: int) -> Answer:
        """Send a whole request (head and body). The connection must be free."""
        answer = self.answer = Answer(self, self._loop.create_future(), max_bytes)
        self._untouched = True
        self._head_bytes = 0
        self._pieces.clear()
        self.heard_at = self._loop.time()
        self._transport.write(request)
        return answer

    def pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self.heard_at = self._loop.time()
            self._transport.resume_reading()

    def cut(self) -> None:
        """End it at once."""
        self.answer = None
        if not self.lost:
            self._transport.abort()

    def expire(self, now: float, limit_s: float) -> None:
        """Fail an answer of which nothing came for `limit_s`; not while we do not take it."""
        if self.answer is not None and not self._paused and now - self.heard_at > limit_s:
            self._fail(AnswerLate("nothing came for too long"))

    # ---------------------------------------------------------------------------------------- asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        answer, self.answer = self.answer, None
        if answer is not None:
            if answer.close_delimited and exc is None:
                answer.finished()
            else:
                reason = type(exc).__name__ if exc is not None else "closed"
                answer.failed(AnswerBroken(reason, untouched=self._untouched))
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        if self.answer is None:
            self._transport.abort()  # nobody asked for anything
            return
        self._untouched = False
        self.heard_at = self._loop.time()
        error: AnswerBroken | None = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as why:
            error = AnswerBroken(f"not HTTP: {why}")
        if self._pieces:
            self._deliver()
        if error is not None and self._whole is None:
            self._fail(error)
            return
        self._stray = self._stray or error is not None
        if self._whole is not None:
            self._let_go(self._whole)
        elif self.answer is not None and not self.answer.status:
            self._head_bytes += len(data)
            if self._head_bytes > _READ_AHEAD_BYTES:
                self._fail(AnswerBroken("the head is too large"))

    def _deliver(self) -> None:
        """Pass the body of one read on as one piece, however many chunks it came in: one write for the client."""
        pieces, self._pieces = self._pieces, []
        answer = self._whole or self.answer
        if answer is None:
            return
        if not answer.take(pieces[0] if len(pieces) == 1 else b"".join(pieces)):
            self.pause()
        if not answer.is_stream and answer.size > answer.max_bytes and self._whole is None:
            self._fail(AnswerTooLarge("the answer is too large"))

    def _let_go(self, answer: Answer) -> None:
        """Its answer is whole: the connection is free, unless more came than was asked for."""
        self._whole = None
        self.resume()
        if self._stray:
            self._transport.abort()
        elif self._reusable and not self._transport.is_closing():
            self._on_free(self)
        else:
            self._transport.close()
        answer.finished()

    # ---------------------------------------------------------------------------------------- llhttp's calls

    def on_message_begin(self) -> None:
        self._stray = self.answer is None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.answer is not None and not self.answer.status:
            self.answer.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        answer = self.answer
        if answer is None:
            return
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like: the real one follows
            answer.headers.clear()
            return
        answer.status = status
        headers = answer.headers
        self._reusable = self._parser.should_keep_alive()
        answer.close_delimited = (
            b"content-length" not in headers and b"transfer-encoding" not in headers and status not in (204, 304)
        )
        if headers.get(b"content-type", b"")[:17].lower() == b"text/event-stream":
            answer.is_stream = True
            if not answer.ready.done():
                answer.ready.set_result(None)

    def on_body(self, body: bytes) -> None:
        if self.answer is not None:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        answer = self.answer
        if answer is None or not answer.status:
            return
        self.answer, self._whole = None, answer  # what comes behind it in the same bytes is looked at first

    def _fail(self, error: AnswerBroken) -> None:
        answer, self.answer = self.answer, None
        self._transport.abort()
        if answer is not None:
            answer.failed(error)
