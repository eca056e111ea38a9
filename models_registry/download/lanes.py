"""Connections at work: each takes the next piece of a file; when none is left, half of what another has before it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
import structlog

from models_registry.download.pace import Meter
from models_registry.download.remote import Remote, TryAgain
from models_registry.errors import RegistryError, SourceUnreachable
from wire.pace import Limit

log = structlog.get_logger(__name__)

LEAST_STOLEN = 4 << 20
MOST_TRIES = 8
"""One after the other without a byte of progress."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 20.0
_SLOW_AFTER_S, _SLOW_SHARE = 8.0, 0.1


@dataclass
class Control:
    """What may be changed while it runs."""

    limit: Limit = field(default_factory=Limit)
    paused: bool = False
    cancelled: bool = False
    connections: int | None = None
    """At most so many of those there are; None: all."""


@dataclass(eq=False)
class Source:
    """Where the pieces of one file come from, and go to."""

    remote: Remote
    size: int
    write: Callable[[int, bytes], None]
    is_single: bool = False
    """It knows no ranges: one connection takes all of it, from the start."""


@dataclass(eq=False)
class Piece:
    """Bytes of a file that one connection fetches: from `at`, which moves on, to `end`, which may come nearer."""

    source: Source
    at: int
    end: int
    tries: int = 0
    """Without progress."""
    not_before: float = 0.0
    began: float = 0.0
    seen: int = 0
    """Position at the last look for slow ones."""
    task: asyncio.Task[None] | None = None


class Lanes:
    """`add` pieces; `run` fetches until there are none and `may_end` says so."""

    def __init__(self, session: aiohttp.ClientSession, connections: int, control: Control) -> None:
        self.meter = Meter(time.monotonic())
        self.failure: BaseException | None = None
        """What made it impossible: `run` raises it."""
        self._session = session
        self._connections = connections
        self._control = control
        self._queue: deque[Piece] = deque()
        self._active: set[Piece] = set()
        self._changed = asyncio.Event()
        self._slow_at = time.monotonic()

    @property
    def is_idle(self) -> bool:
        return not self._queue and not self._active

    @property
    def waiting(self) -> int:
        """Pieces that no connection has."""
        return len(self._queue)

    def has(self, source: Source) -> bool:
        return any(piece.source is source for piece in (*self._active, *self._queue))

    def add(self, piece: Piece) -> None:
        self._queue.append(piece)

    def wake(self) -> None:
        """Something has changed: look again."""
        self._changed.set()

    async def step(self) -> None:
        """Start what can be started, and wait until something happens. Raises `failure`."""
        if self.failure is not None:
            raise self.failure
        self._changed.clear()
        wait_s = self._start_pieces()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), wait_s)

    async def close(self) -> None:
        """End every connection's work; what was written stays."""
        tasks = [piece.task for piece in self._active if piece.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def read(self, source: Source, start: int, end: int) -> bytes:
        """Some bytes into memory, by a connection of its own."""
        found = bytearray(end - start)

        def keep(at: int, data: bytes) -> None:
            found[at - start : at - start + len(data)] = data

        piece = Piece(Source(source.remote, source.size, keep, source.is_single), start, end)
        while piece.at < piece.end:
            await self._try(piece)
            if (pause_s := piece.not_before - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
        return bytes(found)

    def drop_slow(self) -> None:
        """A connection that is much slower than the others is given up: its rest goes to a new one."""
        now = time.monotonic()
        if now - self._slow_at < _SLOW_AFTER_S:
            return
        self._slow_at = now
        old = [piece for piece in self._active if now - piece.began >= _SLOW_AFTER_S]
        moved = {piece: piece.at - piece.seen for piece in old}
        for piece in old:
            piece.seen = piece.at
        if len(old) < 3 or self._control.limit.bytes_per_second:
            return
        usual = statistics.median(moved.values())
        for piece, count in moved.items():
            if count < usual * _SLOW_SHARE and piece.task is not None and not piece.source.is_single:
                log.info("download.slow_dropped", file=piece.source.remote.name, bytes=count, usual=int(usual))
                piece.task.cancel()

    # ---------------------------------------------------------------------------------------- inside

    def _start_pieces(self) -> float:
        """Give every free connection something to do; how long until there may be more (seconds)."""
        if self._control.paused:
            for piece in list(self._active):
                if piece.task is not None:
                    piece.task.cancel()
            return 0.25
        now, wait_s = time.monotonic(), 1.0
        most = min(self._connections, self._control.connections or self._connections)
        self._end_surplus(most)
        for _ in range(len(self._queue)):
            if len(self._active) >= most:
                return wait_s
            piece = self._queue.popleft()
            if piece.not_before > now:
                self._queue.append(piece)
                wait_s = min(wait_s, piece.not_before - now)
            else:
                self._start(piece, now)
        while len(self._active) < most and (stolen := self._steal()) is not None:
            self._start(stolen, now)
        return max(0.01, wait_s)

    def _end_surplus(self, most: int) -> None:
        """Others need the connections: those with the most left before them give theirs up."""
        if len(self._active) <= most:
            return
        ordered = sorted(self._active, key=lambda piece: (piece.source.is_single, piece.at - piece.end), reverse=True)
        for piece in ordered[most:]:
            if piece.task is not None:
                piece.task.cancel()

    def _start(self, piece: Piece, now: float) -> None:
        piece.began, piece.seen = now, piece.at
        self._active.add(piece)
        piece.task = asyncio.create_task(self._run_piece(piece))

    def _steal(self) -> Piece | None:
        """Half of what the one with the most left has before it."""
        open_ones = (piece for piece in self._active if not piece.source.is_single)
        richest = max(open_ones, key=lambda piece: piece.end - piece.at, default=None)
        if richest is None or richest.end - richest.at < 2 * LEAST_STOLEN:
            return None
        middle = (richest.at + richest.end) // 2
        stolen = Piece(richest.source, middle, richest.end)
        richest.end = middle
        return stolen

    async def _run_piece(self, piece: Piece) -> None:
        try:
            await self._try(piece)
        except asyncio.CancelledError:
            pass  # it goes on elsewhere, or everything ends
        except (RegistryError, OSError) as error:
            self.failure = self.failure or error
        except Exception as error:  # a fault of ours must not look like patience
            log.exception("download.broke_off", file=piece.source.remote.name)
            self.failure = self.failure or error
        finally:
            self._active.discard(piece)
            piece.task = None
            if piece.at < piece.end:
                self._queue.appendleft(piece)
            self._changed.set()

    async def _try(self, piece: Piece) -> None:
        """Fetch as much of the piece as one connection gives. Raises what cannot be mended by trying again."""
        before, name = piece.at, piece.source.remote.name
        reason, after_s = "the connection ended too soon", None
        try:
            await self._receive(piece)
        except TryAgain as error:
            reason, after_s = str(error), error.after_s
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            reason = str(error) or type(error).__name__
        if piece.at >= piece.end:
            return
        piece.tries = 0 if piece.at > before else piece.tries + 1
        if piece.tries >= MOST_TRIES:
            raise SourceUnreachable(f"{name} could not be fetched: {reason}.")
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**piece.tries) * random.uniform(0.5, 1.0)  # noqa: S311
        piece.not_before = time.monotonic() + (after_s if after_s is not None else pause_s)
        log.info("download.try_again", file=name, at=piece.at, reason=reason, tries=piece.tries)

    async def _receive(self, piece: Piece) -> None:
        source = piece.source
        start, end = (0, source.size) if source.is_single and piece.end == source.size else (piece.at, piece.end)
        opening = await source.remote.open(self._session, start, end, source.size)
        content = opening.answer.content
        try:
            if opening.is_whole:
                self._make_single(piece)
            at = opening.start
            async for data in content.iter_any():
                await self._control.limit.take(len(data))
                self.meter.add(len(data))
                at = _keep(piece, at, data)
                if piece.at >= piece.end:
                    return
        finally:
            if not content.at_eof():
                opening.answer.close()  # more comes than is wanted
            opening.answer.release()

    def _make_single(self, piece: Piece) -> None:
        """The source sends all of it, whatever is asked for: this connection takes all that the others had before
        them, and whatever of it is there already is written once more."""
        source = piece.source
        if source.is_single:
            return
        source.is_single = True
        others = [one for one in (*self._active, *self._queue) if one is not piece and one.source is source]
        piece.at = min([piece.at, *(one.at for one in others)])
        piece.end = max([piece.end, *(one.end for one in others)])
        self._queue = deque(one for one in self._queue if one.source is not source)
        for other in others:
            other.end = other.at  # it has nothing more to do
            if other.task is not None:
                other.task.cancel()


def _keep(piece: Piece, at: int, data: bytes) -> int:
    """Write what of `data`, which begins at `at`, belongs to the piece; where the next begins."""
    following = at + len(data)
    if at < piece.at:
        data, at = data[piece.at - at :], piece.at
    data = data[: max(0, piece.end - at)]
    if data:
        piece.source.write(at, data)
        piece.at = at + len(data)
    return following
