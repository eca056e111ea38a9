"""Many gateway processes behind one port: what parent and children say to each other, and the child's side of it.

The parent holds the one link to the master and hands its messages on; a child reports its status and delivers usage.
One JSON message a line over a unix socket in the gateway's folder. A child whose parent is gone goes on serving by the
last state; a new parent lets it drain once its own children serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from gateway.feed import STATUS_S, Change
from gateway.home import Home
from gateway.state import State, apply_delta, from_snapshot
from gateway.usage.journal import seal
from wire.errors import BadMessage
from wire.feed import FeedDelta, FeedSnapshot, GatewayStatus, UsageAck, UsageBatch

log = structlog.get_logger(__name__)

MAX_LINE_BYTES = 64 * 1024 * 1024
ALONE_S = 30.0
"""How long a child serves without a parent."""
_RETRY_S = 0.2
_RESEND_S = 10.0


class ChildHello(msgspec.Struct, frozen=True, kw_only=True, tag="child"):
    """First message of a child, sent once it listens."""

    pid: int


class LinkState(msgspec.Struct, frozen=True, kw_only=True, tag="link"):
    """How the parent's link to the master is; and whether the child should go."""

    connected: bool
    revoked: bool = False
    leave: bool = False


Down = FeedSnapshot | FeedDelta | UsageAck | LinkState
Up = ChildHello | GatewayStatus | UsageBatch

_encoder = msgspec.json.Encoder()
_decode_down = msgspec.json.Decoder(Down).decode
_decode_up = msgspec.json.Decoder(Up).decode


def line(message: Down | Up) -> bytes:
    """A message as it goes over the socket."""
    return _encoder.encode(message) + b"\n"


def read_up(data: bytes) -> Up:
    """Raises BadMessage."""
    try:
        message: Up = _decode_up(data)
        return message
    except msgspec.DecodeError as error:
        raise BadMessage(f"message not understood: {error}") from error


def socket_path(home: Home) -> Path:
    return home.path / "family.sock"


class ChildFeed:
    """As `gateway.feed.Feed`, through the parent."""

    def __init__(
        self,
        home: Home,
        status: Callable[[], GatewayStatus],
        leave: Callable[[], None],
        listening: asyncio.Future[int],
    ) -> None:
        self._home = home
        self._status = status
        self._leave = leave
        self._listening = listening
        self.state: State | None = None
        self.connected = False
        self.heard_at: float | None = None
        self.on_change: Callable[[State, Change], None] = lambda state, change: None
        self.on_ack: Callable[[str], None] = lambda batch_id: None
        self.on_revoked: Callable[[], None] = lambda: None
        self.waiting: Callable[[], list[UsageBatch]] = list
        self._unsent: list[UsageBatch] = []
        self._send_now = asyncio.Event()

    def load(self) -> None:
        """Start from the state that the parent keeps on disk."""
        with contextlib.suppress(msgspec.DecodeError, ValueError, OSError):
            stored = self._home.state()
            if stored is not None:
                self._accept(from_snapshot(stored.snapshot, stored.saved_at), Change(None, None))

    def deliver(self, batch: UsageBatch) -> None:
        self._unsent.append(batch)
        self._send_now.set()

    async def run(self) -> None:
        """Keep in touch with a parent until cancelled; without one for `ALONE_S`, leave."""
        await asyncio.shield(self._listening)
        alone_since = time.monotonic()
        while True:
            with contextlib.suppress(OSError, BadMessage, ValueError, msgspec.DecodeError):
                await self._connection()
                alone_since = time.monotonic()
            self.connected = False
            if time.monotonic() - alone_since > ALONE_S:
                log.error("family.no_parent", remedy="This process drains; the supervisor starts the gateway anew.")
                self._leave()
                return
            await asyncio.sleep(_RETRY_S)

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(socket_path(self._home)), limit=MAX_LINE_BYTES)
        writer.write(line(ChildHello(pid=os.getpid())))
        sender = asyncio.create_task(self._send(writer))
        try:
            while data := await reader.readline():
                self._hear(_decode_down(data))
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sender
            writer.close()

    def _hear(self, message: Down) -> None:
        self.heard_at = time.monotonic()
        if isinstance(message, FeedSnapshot):
            self._accept(from_snapshot(message, time.time()), Change(None, None))
        elif isinstance(message, FeedDelta):
            if self.state is not None:
                changed = Change(tuple(key.id for key in message.keys), tuple(item.id for item in message.projects))
                self._accept(apply_delta(self.state, message, time.time()), changed)
        elif isinstance(message, UsageAck):
            self.on_ack(message.batch_id)
        else:
            self.connected = message.connected
            if message.revoked:
                self.state = None
                self.on_revoked()
            if message.leave:
                self._leave()

    def _accept(self, state: State, change: Change) -> None:
        before = self.state.routable() if self.state is not None else ()
        self.state = state
        self.on_change(state, change)
        if state.routable() != before:
            self._send_now.set()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        resend_at = 0.0
        while True:
            if time.monotonic() >= resend_at:
                self._unsent = self.waiting()
                resend_at = time.monotonic() + _RESEND_S
            self._send_now.clear()
            writer.write(line(self._status()))
            while self._unsent:
                writer.write(line(self._unsent.pop(0)))
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._send_now.wait(), STATUS_S)


# ------------------------------------------------------------------------------------------------ journals


def own_journal(home: Home) -> tuple[Path, int]:
    """(folder of this child's journal, descriptor that keeps it locked while the process lives)."""
    folder = home.journal / f"child-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def adopt_journals(home: Home) -> int:
    """Move what children that are gone have left into the folder above; how many files. Their names are unique."""
    moved = 0
    for folder in home.journal.glob("child-*"):
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seal(folder)
            for path in folder.glob("*.batch"):
                path.replace(home.journal / path.name)
                moved += 1
            (folder / "lock").unlink()
            for rest in folder.iterdir():
                rest.unlink()
            folder.rmdir()
        except BlockingIOError:
            continue  # it lives
        finally:
            os.close(lock)
    return moved
