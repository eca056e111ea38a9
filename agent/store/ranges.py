"""HTTP/1.1 for ranges of blobs: what comes is decrypted straight into the piece that it belongs to.

A general client hands an answer over in chunks, each copied several times on its way; for bytes that servers pass on to
each other by the gigabyte that costs more than TLS does (docs/performance.md). Heads are parsed by llhttp (httptools);
bodies have a Content-Length, or are not taken.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast

import httptools

_MAX_HEAD_BYTES = 32 << 10
_READ_BYTES = 2 << 10
"""Of a head at once: what of a body comes with it is copied."""
_TELL_BYTES = 1 << 20
"""So much of a body is told of at once."""
_AHEAD_BYTES = 2 << 20
"""Nothing is read while so much was not taken yet."""
_WAKE_BYTES = 256 << 10
_NEAR_END_BYTES = 1 << 20
"""More than what may lie between the kernel and us."""
_IDLE_S = 10.0
"""A connection that nobody used for so long may be closed already at the other end."""


class BadAnswer(ConnectionError):
    """What came is not what was asked for."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens. `name` is what its certificate must be for."""

    host: str
    port: int
    name: str
    context: ssl.SSLContext

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Connection(asyncio.BufferedProtocol):
    """Asks for one range after the other. Awaited calls raise OSError (so BadAnswer, TimeoutError, ssl.SSLError)."""

    def __init__(self, read_s: float) -> None:
        """`read_s`: how long nothing may come."""
        self._loop = asyncio.get_running_loop()
        self._read_s = read_s
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self._lost: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._heard_at = 0.0
        self._wakes_at = 1
        self._scratch = memoryview(bytearray(_READ_BYTES))
        self._head = bytearray()
        self._parser: httptools.HttpResponseParser | None = None
        self._has_head = False
        self._stays = False
        """It may be asked again after this answer."""
        self._left = 0
        """Bytes of the body that did not come yet."""
        self._into = self._scratch[:0]
        self._filled = self._taken = 0
        self.idle_since = 0.0
        self.untouched = True
        """Nothing of the answer came."""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.length = 0
        """Bytes of the answer's body."""

    @property
    def is_free(self) -> bool:
        """Whether another range may be asked for."""
        return (
            self._lost is None
            and not self._transport.is_closing()
            and self._stays
            and not self._left
            and not self._head
        )

    async def ask(self, request: bytes) -> None:
        """Send a whole request; returns when the head of its answer is here."""
        self._head.clear()
        self._has_head, self._stays, self.headers = False, False, {}
        self.untouched = True
        self._heard_at = self._loop.time()
        self._raise_when_lost()
        self._transport.resume_reading()
        self._transport.write(request)
        while not self._has_head:
            await self._wait()
        self.length = self._body_length()
        self._left = self.length

    async def body(self, into: memoryview) -> AsyncGenerator[int]:
        """Write the body to `into`, which has its length; says, now and then, how many bytes more are there."""
        assert len(into) == self._left  # noqa: S101 - the caller compared them
        early = min(len(self._head), self._left)
        into[:early] = self._head[:early]
        if early < len(self._head):
            raise BadAnswer("more came than was announced")
        self._head.clear()
        self._into, self._filled, self._taken = into, early, 0
        self._left -= early
        try:
            self._wake_at(_WAKE_BYTES)
            if self._left:
                self._transport.resume_reading()
            while self._taken < len(into):
                while self._left and self._filled - self._taken < _TELL_BYTES:
                    await self._wait()
                count = self._filled - self._taken
                self._taken += count
                if self._left:
                    self._transport.resume_reading()
                yield count
        finally:
            self._into = self._scratch[:0]

    def rest(self) -> None:
        """Nobody asks for anything now. It is still heard, for the other end may close."""
        self.idle_since = self._loop.time()
        self._transport.resume_reading()

    def close(self) -> None:
        self._transport.abort()

    async def _wait(self) -> None:
        """Until something happens. Raises TimeoutError when nothing came for `read_s`."""
        self._raise_when_lost()
        self._waiter = self._loop.create_future()
        patience_s = self._read_s if self._wakes_at == 1 else self._read_s / 2
        try:
            async with asyncio.timeout_at(self._heard_at + patience_s):
                await self._waiter
        except TimeoutError:
            if self._loop.time() < self._heard_at + patience_s:
                return
            if self._wakes_at == 1:
                raise TimeoutError(f"nothing came for {self._read_s:g} s") from None
            self._wake_at(1)  # slow: hear of every byte, then
        finally:
            self._waiter = None

    def _raise_when_lost(self) -> None:
        if self._lost is not None:
            if isinstance(self._lost, OSError):
                raise self._lost
            raise ConnectionResetError(str(self._lost) or "the connection was closed")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wake_at(self, count_bytes: int) -> None:
        """Have the kernel tell of data when so much is there: a slow connection then costs hardly more than a fast one.

        Near the end any byte wakes us, or the last would be waited for in vain.
        """
        if count_bytes > 1 and self._left <= 2 * _NEAR_END_BYTES:
            count_bytes = 1
        if count_bytes == self._wakes_at:
            return
        self._wakes_at = count_bytes
        if (sock := self._transport.get_extra_info("socket")) is not None:
            with suppress(OSError, ValueError):  # closed meanwhile
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count_bytes)

    def _body_length(self) -> int:
        if "transfer-encoding" in self.headers:
            raise BadAnswer("its answer has no length")
        text = self.headers.get("content-length", "")
        if not text.isdecimal():
            raise BadAnswer("its answer has no length")
        return int(text)

    # ------------------------------------------------------------------------------------------- asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._into[self._filled :] if self._filled < len(self._into) else self._scratch

    def buffer_updated(self, count: int) -> None:
        self._heard_at = self._loop.time()
        if self._filled < len(self._into):
            self._filled += count
            self._left -= count
            self._came()
        elif not self._has_head:
            self.untouched = False
            self._head += self._scratch[:count]
            self._read_head()
        else:
            self._fail(BadAnswer("more came than was announced"))

    def _came(self) -> None:
        if self._wakes_at > 1 and self._left <= _NEAR_END_BYTES:
            self._wake_at(1)
        ahead = self._filled - self._taken
        if not self._left or ahead >= _TELL_BYTES:
            self._wake()
            if self._left and ahead >= _AHEAD_BYTES:
                self._transport.pause_reading()

    def _read_head(self) -> None:
        end = self._head.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(self._head) > _MAX_HEAD_BYTES:
                self._fail(BadAnswer("the head of its answer is too large"))
            return
        self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(bytes(self._head[:end]))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(BadAnswer(f"its answer is not HTTP: {error}"))
            return
        del self._head[:end]
        self._has_head = True
        self._transport.pause_reading()  # the body has no place yet
        self._wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 - it is what calls this
        self.status = self._parser.get_status_code()
        self._stays = self._parser.should_keep_alive()

    def _fail(self, error: OSError) -> None:
        self._lost = self._lost or error
        self._transport.abort()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._lost or exc or ConnectionResetError("the connection was closed")
        self._wake()


class Ranges:
    """Connections to one server, kept open between requests."""

    def __init__(self, endpoint: Callable[[], Endpoint], connect_s: float, read_s: float) -> None:
        self._endpoint = endpoint
        self._connect_s = connect_s
        self._read_s = read_s
        self._free: list[Connection] = []

    @asynccontextmanager
    async def get(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[Connection]:
        """An answer whose head is here. Raises OSError, also for what breaks off within the context."""
        async with self._ask("GET", path, headers, b"") as answer:
            yield answer

    async def post(self, path: str, body: bytes, max_bytes: int) -> tuple[int, bytes]:
        """(status, body) of an answer. Raises OSError."""
        async with self._ask("POST", path, {"Content-Length": str(len(body))}, body) as answer:
            if answer.length > max_bytes:
                raise BadAnswer("an answer that is far too long")
            text = bytearray(answer.length)
            async with aclosing(answer.body(memoryview(text))) as counts:
                async for _ in counts:
                    pass
            return answer.status, bytes(text)

    def close(self) -> None:
        while self._free:
            self._free.pop().close()

    @asynccontextmanager
    async def _ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> AsyncIterator[Connection]:
        connection = await self._asked(method, path, headers, body)
        try:
            yield connection
        finally:
            if connection.is_free:
                connection.rest()
                self._free.append(connection)
            else:
                connection.close()

    async def _asked(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Connection:
        while True:
            kept = self._kept()
            endpoint = self._endpoint()
            lines = [f"{method} {path} HTTP/1.1", f"Host: {endpoint.authority}", "Accept-Encoding: identity"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            connection = kept or await self._connect(endpoint)
            try:
                await connection.ask("\r\n".join([*lines, "\r\n"]).encode("latin-1") + body)
                return connection
            except BaseException as error:
                connection.close()
                if kept is None or not isinstance(error, ConnectionError) or not connection.untouched:
                    raise
                # the other end had closed it: ask on another

    def _kept(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._free:
            connection = self._free.pop()
            if connection.is_free and now - connection.idle_since < _IDLE_S:
                return connection
            connection.close()
        return None

    async def _connect(self, endpoint: Endpoint) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._read_s),
                    endpoint.host,
                    endpoint.port,
                    ssl=endpoint.context,
                    server_hostname=endpoint.name,
                    happy_eyeballs_delay=0.25,
                )
        except TimeoutError:
            raise TimeoutError(f"no connection within {self._connect_s:g} s") from None
        return connection
