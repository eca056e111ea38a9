"""Brings the missing blobs of one manifest here, in pieces, from all who have some: peers first of all, and the master.

Each source has lanes; a lane asks for one piece after the other. A piece is checked against its hash as it comes, and
may be handed on from then on. A source that fails rests a while; one that sends wrong bytes is not asked again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import structlog

from agent.errors import CorruptBlob, DiskFull, FetchFailed
from agent.store.blob import Blob
from agent.store.choose_piece import Key, choose
from agent.store.sources import Missing, PeerSource, Source
from wire.errors import BadMessage
from wire.pace import Limit
from wire.pieces import PIECE_BYTES, Have, piece_span, unpack

LOOK_EVERY_S = 0.4
"""How often peers are asked what they have; the more of it is of use here, the less often."""
FIND_EVERY_S = 3.0
"""How often the master is asked who else there is, while there are new ones; else less and less often, to"""
_FIND_SELDOM_S = 15.0
_WINDOW = 1024
"""Pieces looked at, from the first that is missing: the sha256 of the whole follows close behind."""
_MAX_PEERS = 16
_AT_ONCE = 5
"""Pieces in memory."""
_PLENTY = 12
_LATE_AFTER_S = 2.0
_FLUSH_EVERY_S = 2.0
_REST_S = 0.25
_LONGEST_REST_S = 20.0
_STALL_S = 30.0
_MAX_WRONG = 3
_MAX_FAILURES = 3
_MEET_S = 1.0

log = structlog.get_logger(__name__)


class Finder(Protocol):
    """What finds peers, and has the master."""

    @property
    def master(self) -> Source: ...

    async def look(self, digest: str) -> tuple[list[PeerSource], tuple[str, ...]]: ...


@dataclass
class _Known:
    """A source, and what is known of it. In `has`, None stands for all pieces of a blob."""

    source: Source
    has: dict[str, set[int] | None]
    coming: dict[str, set[int]] = field(default_factory=dict)
    failures: int = 0
    rests_until: float = 0.0
    banned: bool = False
    met: asyncio.Event = field(default_factory=asyncio.Event)
    """It said what it has, or failed to."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """There may be something to ask for again."""

    def rest(self, first_s: float) -> float:
        """One failure more: leave it alone for `first_s`, doubled with each in a row; how long that is."""
        self.failures += 1
        rest_s = min(_LONGEST_REST_S, first_s * 2.0 ** min(self.failures - 1, 10))
        self.rests_until = time.monotonic() + rest_s
        return rest_s

    @property
    def may_help(self) -> bool:
        """Whether it has something, as far as is known, or may answer yet."""
        return (
            not self.banned
            and self.failures < _MAX_FAILURES
            and (bool(self.has or self.failures) or not self.met.is_set())
        )


class Swarm:
    """One fetch. `run` returns when every blob is whole and its sha256 was checked."""

    def __init__(
        self,
        blobs: Sequence[Blob],
        digest: str,
        finder: Finder,
        limit: Limit,
        told: Callable[[str, int], None],
        first_peers: Sequence[PeerSource] = (),
    ) -> None:
        """`told(source, bytes)` hears of every piece that came."""
        self._blobs = {blob.file.sha256: blob for blob in blobs}
        self._digest = digest
        self._finder = finder
        self._limit = limit
        self._told = told
        self._master = _Known(finder.master, has=dict.fromkeys(self._blobs))
        self._peers: dict[str, _Known] = {}
        self._asked: Counter[Key] = Counter()
        self._asked_at: dict[Key, float] = {}
        self._copies: dict[str, Counter[int]] = {sha256: Counter() for sha256 in self._blobs}
        self._wrong: Counter[Key] = Counter()
        self._buffers: list[bytearray] = []
        """Used again: fresh memory costs more than what is done with it."""
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._moved_at = time.monotonic()
        self._last_error: FetchFailed | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._first_peers = first_peers

    def asked_for(self, sha256: str) -> set[int]:
        """Pieces of a blob that are on their way."""
        return {key.piece for key in self._asked if key.sha256 == sha256}

    async def run(self) -> None:
        """Raises FetchFailed (also CorruptBlob, DiskFull); what came is kept."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._spawn(self._find_peers())
                self._spawn(self._flush())
                self._add_peers(self._first_peers)
                self._spawn(self._begin_at_the_master())
                try:
                    await self._check_all()
                finally:
                    for task in list(self._running):
                        task.cancel()
        except BaseExceptionGroup as group:
            failed, others = group.split(FetchFailed)
            if failed is None or others is not None:
                raise
            raise _first(failed) from None
        finally:
            for blob in self._blobs.values():
                await asyncio.to_thread(blob.part.flush)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        assert self._tasks is not None  # noqa: S101 - called within run
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _check_all(self) -> None:
        """Until each blob is whole, and was checked."""
        pending = {asyncio.create_task(blob.check_whole()) for blob in self._blobs.values()}
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=1.0, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
                self._give_up_when_stuck()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _give_up_when_stuck(self) -> None:
        if self._last_error is None or not self._is_missing_any():
            return
        if time.monotonic() - self._moved_at > _STALL_S:
            raise self._last_error

    # ------------------------------------------------------------------------------------------------ lanes

    def _open_lanes(self, known: _Known) -> None:
        for _ in range(known.source.lanes):
            self._spawn(self._lane(known))

    async def _begin_at_the_master(self) -> None:
        """Peers are heard first: what they have, or are getting, is not what to ask the master for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_MEET_S):
                for known in list(self._peers.values()):
                    await known.met.wait()
        self._open_lanes(self._master)

    async def _lane(self, known: _Known) -> None:
        while not known.banned and self._is_missing_any():
            await self._rest(known)
            async with self._slots:
                key = self._next(known)
                if key is not None:
                    await self._fetch(known, key)
            if key is None:
                await self._wait_for_news(known)

    def _is_missing_any(self) -> bool:
        return any(not blob.part.is_whole for blob in self._blobs.values())

    async def _rest(self, known: _Known) -> None:
        await asyncio.sleep(max(0.0, known.rests_until - time.monotonic()))

    async def _wait_for_news(self, known: _Known) -> None:
        known.news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LATE_AFTER_S):
                await known.news.wait()

    def _next(self, known: _Known) -> Key | None:
        late_since = time.monotonic() - _LATE_AFTER_S
        late = {key for key, since in self._asked_at.items() if since < late_since}
        available = islice(self._available(known), _WINDOW)
        return choose(available, self._asked, late, lambda key: self._copies[key.sha256][key.piece], random.random)

    def _available(self, known: _Known) -> Iterator[Key]:
        """Pieces that a source has and that are missing here, near the first one that is missing."""
        for sha256, blob in self._blobs.items():
            if blob.part.is_whole or sha256 not in known.has:
                continue
            first = blob.hashed_bytes // PIECE_BYTES  # all before it are there
            has = known.has[sha256]
            window = range(first, min(first + _WINDOW, blob.part.count))
            indexes = window if has is None else sorted(has.intersection(window))
            yield from (Key(sha256, index) for index in indexes if index not in blob.part.done)

    async def _fetch(self, known: _Known, key: Key) -> None:
        blob = self._blobs[key.sha256]
        self._asked[key] += 1
        self._asked_at.setdefault(key, time.monotonic())
        try:
            right = await self._take(known, blob, key)
        except FetchFailed as error:
            self._failed(known, key, error)
            return
        finally:
            self._asked[key] -= 1
            if not self._asked[key]:
                del self._asked[key]
                del self._asked_at[key]
        if right:
            known.failures = 0
        else:
            self._sent_wrong_bytes(known, key)

    async def _take(self, known: _Known, blob: Blob, key: Key) -> bool:
        """Bring a piece here; whether it was the right one. Only right bytes are ever written."""
        start, end = piece_span(key.piece, blob.file.size_bytes)
        buffer = self._buffers.pop() if self._buffers else bytearray(PIECE_BYTES)
        piece = memoryview(buffer)[: end - start]
        async with aclosing(known.source.read(blob.file, start, piece)) as answer:
            async for count in answer:
                if key.piece in blob.part.done:  # another source was quicker
                    return True
                await self._limit.take(count)
        news = key.piece not in blob.part.done
        right = await blob.keep(key.piece, piece)
        self._buffers.append(buffer)  # not one that a thread may still be reading: then we do not come here
        if right and news:
            self._told(known.source.name, len(piece))
        if right:
            self._moved_at = time.monotonic()
        return right

    def _failed(self, known: _Known, key: Key, error: FetchFailed) -> None:
        self._last_error = error
        if isinstance(error, Missing):
            self._note(known, {one: has for one, has in known.has.items() if one != key.sha256}, known.coming)
        self._wake_all()  # the piece is free for others
        rest_s = known.rest(_REST_S)
        log.info("fetch.source_failed", source=known.source.name, error=error.message, rest_s=rest_s)
        hope = any(one.may_help for one in self._peers.values())
        if known is self._master and not hope and (known.failures >= _MAX_FAILURES or isinstance(error, Missing)):
            raise error  # nobody else to hope for
        if isinstance(error, DiskFull):
            raise error

    def _sent_wrong_bytes(self, known: _Known, key: Key) -> None:
        """A peer may be broken: it is not asked again. A master may have been, or the way to it: it is, twice."""
        file = self._blobs[key.sha256].file
        self._wrong[key] += 1
        self._wake_all()
        log.warning("fetch.wrong_bytes", source=known.source.name, file=file.path, piece=key.piece)
        if known is not self._master:
            known.banned = True
        elif self._wrong[key] >= _MAX_WRONG:
            raise CorruptBlob(f"{file.path}: the bytes received do not fit its hash, piece {key.piece}: thrown away")

    def _wake_all(self) -> None:
        for one in (self._master, *self._peers.values()):
            one.news.set()

    # ------------------------------------------------------------------------------------------------ peers

    async def _find_peers(self) -> None:
        wait_s = FIND_EVERY_S
        while True:
            await asyncio.sleep(wait_s)
            try:
                found, _ = await self._finder.look(self._digest)
            except FetchFailed as error:
                log.info("fetch.no_list_of_peers", error=error.message)
                continue
            known = len(self._peers)
            self._add_peers(found)
            wait_s = FIND_EVERY_S if len(self._peers) != known else min(2 * wait_s, _FIND_SELDOM_S)

    def _add_peers(self, found: Sequence[PeerSource]) -> None:
        new = [one for one in found if one.name not in self._peers]
        random.shuffle(new)
        for source in new[: _MAX_PEERS - len(self._peers)]:
            known = self._peers[source.name] = _Known(source, has={})
            self._spawn(self._watch(known, source))
            self._open_lanes(known)

    async def _watch(self, known: _Known, source: PeerSource) -> None:
        """Keep what a peer has up to date."""
        while not known.banned:
            await self._rest(known)
            missing = [sha256 for sha256, blob in self._blobs.items() if not blob.part.is_whole]
            if not missing:
                return
            try:
                self._note(known, *self._understood(await source.look(missing)))
            except (FetchFailed, BadMessage) as error:
                self._note(known, {}, {})
                log.info("fetch.peer_silent", peer=source.name, error=error.message, rest_s=known.rest(2 * _REST_S))
            known.met.set()
            known.news.set()
            useful = sum(1 for key in islice(self._available(known), _PLENTY) if key not in self._asked)
            await asyncio.sleep(LOOK_EVERY_S * (1 + 3 * useful / _PLENTY))

    def _understood(self, haves: dict[str, Have]) -> tuple[dict[str, set[int] | None], dict[str, set[int]]]:
        """(pieces that are there, pieces on their way) of a peer's answer. Raises BadMessage."""
        has: dict[str, set[int] | None] = {}
        coming: dict[str, set[int]] = {}
        for sha256, have in haves.items():
            if sha256 in self._blobs:
                count = self._blobs[sha256].part.count
                has[sha256] = None if have.whole else unpack(have.done, count)
                coming[sha256] = unpack(have.coming, count)
        return has, coming

    def _note(self, known: _Known, has: dict[str, set[int] | None], coming: dict[str, set[int]]) -> None:
        """What a source has now. Only what has changed is counted: there may be tens of thousands of pieces."""
        for sha256, copies in self._copies.items():
            before = (known.has.get(sha256) or set()) | known.coming.get(sha256, set())
            after = (has.get(sha256) or set()) | coming.get(sha256, set())  # whole ones make no piece less rare
            copies.update(after - before)
            copies.subtract(before - after)
        known.has, known.coming = has, coming

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            for blob in self._blobs.values():
                await asyncio.to_thread(blob.part.flush)


def _first(group: BaseExceptionGroup[FetchFailed]) -> FetchFailed:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, FetchFailed)  # noqa: S101 - except* FetchFailed holds nothing else
    return error
