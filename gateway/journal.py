"""Usage on its way to the master: written ahead to disk, summed into batches, kept until acknowledged.

Files in one folder, named by their batch: `ID.open` takes one JSON line a request; rolling writes the summed rows to
`ID.batch` and drops `ID.open`. A batch has its id from its first line on, and its rows never change: it may be sent any
number of times, over any number of restarts, and is counted once. `kill -9` loses at most the last `FLUSH_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from wire.feed import LATENCY_BOUNDS_MS, UsageBatch, UsageRow

log = structlog.get_logger(__name__)

FLUSH_S = 0.25
ROLL_S = 1.0
MAX_ROWS = 2000
"""Rows a batch may have before it is rolled even while the master is away (it must fit into one message)."""
MAX_OPEN_BYTES = 32 * 1024 * 1024
MAX_WAITING = 8
"""Batches that may wait for their acknowledgement before the next one is kept open (and so summed) for longer."""


class Record(NamedTuple):
    """Usage of one request, in the order of a journal line."""

    hour: int
    project_id: str
    key_id: str
    model: str
    status: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    duration_ms: int
    ttft_ms: int
    cost: int = 0  # nano-units; missing in lines of earlier releases


Group = tuple[int, str, str, str, int]
"""hour x project x key x model x status"""
_BUCKETS = len(LATENCY_BOUNDS_MS) + 1
_DURATIONS = 7  # where the histograms begin in a sum
_TTFTS = _DURATIONS + _BUCKETS


def add_up(sums: dict[Group, list[int]], records: Iterable[Record]) -> None:
    """Add records to `sums`: requests, the numbers of a Record in their order, then both histograms."""
    for record in records:
        group = record[:5]
        total = sums.get(group)
        if total is None:
            total = sums[group] = [0] * (_TTFTS + _BUCKETS)
        total[0] += 1
        total[1] += record[5]
        total[2] += record[6]
        total[3] += record[7]
        total[4] += record[8]
        total[5] += record[9]
        total[6] += record[10]
        total[_DURATIONS + bisect_left(LATENCY_BOUNDS_MS, record[8])] += 1
        if record[9]:
            total[_TTFTS + bisect_left(LATENCY_BOUNDS_MS, record[9])] += 1


def sum_rows(records: Iterable[Record]) -> tuple[UsageRow, ...]:
    """One row a group."""
    sums: dict[Group, list[int]] = {}
    add_up(sums, records)
    return _rows(sums)


def _rows(sums: dict[Group, list[int]]) -> tuple[UsageRow, ...]:
    return tuple(
        UsageRow(
            hour=hour,
            project_id=project_id,
            key_id=key_id,
            model=model,
            status=status,
            requests=total[0],
            prompt_tokens=total[1],
            cached_tokens=total[2],
            completion_tokens=total[3],
            duration_ms=total[4],
            ttft_ms=total[5],
            cost=total[6],
            durations=tuple(total[_DURATIONS:_TTFTS]),
            ttfts=tuple(total[_TTFTS:]),
        )
        for (hour, project_id, key_id, model, status), total in sums.items()
    )


_encode = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_batch = msgspec.json.Decoder(UsageBatch).decode


class Journal:
    """Owner of the folder. `add` never waits; `run` is its one task. File access is in threads, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: list[Record] = []
        self._sums: dict[Group, list[int]] = {}
        """Of the open file, as far as it is on disk."""
        self._batch_id = _new_id()
        self._fd: int | None = None
        self._size = 0
        self._opened_at: float | None = None
        self._working = asyncio.Lock()
        self._stop = asyncio.Event()
        self.waiting: dict[str, UsageBatch] = {}
        """Batches not acknowledged, oldest first."""
        self.delivered = asyncio.Event()
        """Set while nothing waits for its acknowledgement."""
        self.on_batch: Callable[[UsageBatch], None] = lambda batch: None
        self.is_connected: Callable[[], bool] = lambda: False

    def recover(self) -> None:
        """Take up what an earlier process left; before `run`. A torn last line is dropped."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._folder.glob("*.tmp"):
            path.unlink()
        for path in sorted(self._folder.glob("*.batch"), key=lambda item: item.stat().st_mtime_ns):
            try:
                batch = _decode_batch(path.read_bytes())
            except msgspec.DecodeError as error:
                log.error("journal.batch_unreadable", file=path.name, error=str(error))
                path.replace(path.with_suffix(".bad"))
                continue
            self.waiting[batch.batch_id] = batch
            path.with_suffix(".open").unlink(missing_ok=True)
        for path in sorted(self._folder.glob("*.open")):
            records = _read_records(path)
            if records:
                batch = UsageBatch(batch_id=path.stem, rows=sum_rows(records))
                _write_whole(path.with_suffix(".batch"), _encode(batch))
                self.waiting[batch.batch_id] = batch
            path.unlink()
        if self.waiting:
            log.info("journal.recovered", batches=len(self.waiting))

    def add(self, record: Record) -> None:
        """Take one request's usage; on disk within `FLUSH_S`."""
        self._pending.append(record)

    def acknowledge(self, batch_id: str) -> UsageBatch | None:
        """The master has counted it. Returns the batch when it was still waiting here."""
        batch = self.waiting.pop(batch_id, None)
        if batch is not None:
            (self._folder / f"{batch_id}.batch").unlink(missing_ok=True)
            if not self.waiting:
                self.delivered.set()
        return batch

    async def run(self) -> None:
        """Flush and roll until `close`. Not to be cancelled: a write that is under way must be known to be whole."""
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), FLUSH_S)
            await self.step(asyncio.get_running_loop().time())

    async def step(self, now: float, *, roll: bool = False) -> None:
        """One flush, and a roll when due (or asked for). Keeps everything for the next step when the disk refuses."""
        async with self._working:
            try:
                await self._flush(now)
                if self._sums and (roll or self._is_due(now)):
                    await self._roll()
            except OSError as error:
                log.error("journal.write_failed", error=str(error), remedy="Free space on the gateway's disk.")

    async def close(self) -> None:
        """End `run` and write all that is known; the next process delivers what has not been acknowledged."""
        self._stop.set()
        await self.step(0.0, roll=True)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _is_due(self, now: float) -> bool:
        if len(self._sums) >= MAX_ROWS or self._size >= MAX_OPEN_BYTES:
            return True
        if not self.is_connected() or len(self.waiting) >= MAX_WAITING:
            return False
        return self._opened_at is None or now - self._opened_at >= ROLL_S

    async def _flush(self, now: float) -> None:
        if not self._pending:
            return
        records, self._pending = self._pending, []
        try:
            await asyncio.to_thread(self._append, records)
        except OSError:
            self._pending = records + self._pending
            raise
        if not self._sums:
            self._opened_at = now
        add_up(self._sums, records)

    def _append(self, records: Sequence[Record]) -> None:
        if self._fd is None:
            path = self._folder / f"{self._batch_id}.open"
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _sync_folder(self._folder)
        data = b"".join(_encode(record) + b"\n" for record in records)
        os.ftruncate(self._fd, self._size)  # a write that failed halfway left a piece behind
        os.lseek(self._fd, self._size, os.SEEK_SET)
        written = 0
        while written < len(data):
            written += os.write(self._fd, data[written:])
        os.fdatasync(self._fd)
        self._size += len(data)

    async def _roll(self) -> None:
        batch = UsageBatch(batch_id=self._batch_id, rows=_rows(self._sums))
        await asyncio.to_thread(self._seal, batch)
        self._sums = {}
        self._batch_id, self._size, self._opened_at = _new_id(), 0, None
        self.waiting[batch.batch_id] = batch
        self.delivered.clear()
        self.on_batch(batch)

    def _seal(self, batch: UsageBatch) -> None:
        _write_whole(self._folder / f"{batch.batch_id}.batch", _encode(batch))
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        (self._folder / f"{batch.batch_id}.open").unlink(missing_ok=True)


def _new_id() -> str:
    return uuid.uuid4().hex


def _read_records(path: Path) -> list[Record]:
    records = []
    for line in path.read_bytes().split(b"\n"):
        if not line:
            continue
        try:
            records.append(_decode_record(line))
        except msgspec.DecodeError:
            log.warning("journal.torn_line", file=path.name, length=len(line))
    return records


def _write_whole(path: Path, data: bytes) -> None:
    """Write so that the file is whole or not there, also after a power cut."""
    temporary = path.with_suffix(".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
