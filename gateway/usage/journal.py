"""Usage on its way to the master: written ahead, summed into batches, kept until acknowledged.

Files in one folder, named by their batch: `ID.open` takes a JSON line for each request that goes to an engine and one
for each that has ended; rolling writes the summed rows to `ID.batch` and drops `ID.open`. A batch has its id from its
first line on, and its rows never change: it may be sent any number of times, over any number of restarts, and is
counted once. `kill -9` loses nothing: what was at an engine then counts with its prompt, as status 500.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from gateway.usage.openfile import OpenFile, write_whole
from gateway.usage.records import Begun, Group, Record, add_up, encode_line, read_lines, recovered, rows_of, sum_rows
from gateway.usage.replay import Place
from wire.feed import UsageBatch

log = structlog.get_logger(__name__)

SYNC_S = 0.25
ROLL_S = 1.0
MAX_ROWS = 2000
"""Rows a batch may have before it is rolled even while the master is away (it must fit into one message)."""
MAX_OPEN_BYTES = 32 * 1024 * 1024
MAX_WAITING = 8
"""Batches that may wait for their acknowledgement before the next one is kept open (and so summed) for longer."""

_decode_batch = msgspec.json.Decoder(UsageBatch).decode


class Journal:
    """Owner of the folder. `begin` and `add` never wait; `run` is its one task. The disk is waited for in threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: OpenFile | None = None
        self._fresh: list[Record] = []
        """In the open file, not yet in `_sums`."""
        self._sums: dict[Group, list[int]] = {}
        self._unwritten: list[Record] = []
        """What the open file had no room for, or before there is one."""
        self._at_engines: dict[str, bytes] = {}
        """Lines of requests that have begun and not ended."""
        self._opened_at: float | None = None
        self._begun, self._number = secrets.token_hex(6), 0
        self._working = asyncio.Lock()
        self._stop = asyncio.Event()
        self.waiting: dict[str, UsageBatch] = {}
        """Batches not acknowledged, oldest first."""
        self.delivered = asyncio.Event()
        """Set while nothing waits for its acknowledgement."""
        self.on_batch: Callable[[UsageBatch], None] = lambda batch: None
        self.is_connected: Callable[[], bool] = lambda: False
        self.keep: Callable[[Place], Callable[[], None]] = lambda _: _nothing
        """Called when lines go to a new file, whose beginning it is given; what it returns is done (in a thread, may
        raise OSError) before the old one is dropped."""

    def recover(self) -> None:
        """Take up what earlier processes left; before `run`."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        seal(self._folder)
        for path in sorted(self._folder.glob("*.batch"), key=lambda item: item.stat().st_mtime_ns):
            try:
                batch = _decode_batch(path.read_bytes())
            except msgspec.DecodeError as error:
                log.error("journal.batch_unreadable", file=path.name, error=str(error))
                path.replace(path.with_suffix(".bad"))
                continue
            self.waiting[batch.batch_id] = batch
        if self.waiting:
            log.info("journal.recovered", batches=len(self.waiting))

    def begin(self, at: float, record: Record) -> str:
        """A request goes to an engine at this Unix time: how it counts if this process dies before `add`. Returns
        `Record.begun`."""
        self._number += 1
        name = f"{self._begun}{self._number:x}"
        line = self._at_engines[name] = encode_line(Begun(name, record, int(at))) + b"\n"
        if self._file is not None:
            self._file.append(line)
        return name

    def add(self, record: Record) -> None:
        """Take one request's usage."""
        if record.begun:
            self._at_engines.pop(record.begun, None)
        if self._file is not None and self._file.append(encode_line(record) + b"\n"):
            self._fresh.append(record)
        else:
            self._unwritten.append(record)

    def acknowledge(self, batch_id: str) -> UsageBatch | None:
        """The master has counted it. Returns the batch when it was still waiting here."""
        batch = self.waiting.pop(batch_id, None)
        if batch is not None:
            (self._folder / f"{batch_id}.batch").unlink(missing_ok=True)
            if not self.waiting:
                self.delivered.set()
        return batch

    async def run(self) -> None:
        """Sync and roll until `close`. Not to be cancelled: a write that is under way must be known to be whole."""
        while not self._stop.is_set():
            await self.step(asyncio.get_running_loop().time())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), SYNC_S)

    async def step(self, now: float, *, roll: bool = False) -> None:
        """One sync, and a roll when due (or asked for). Keeps everything for the next step when the disk refuses."""
        async with self._working:
            try:
                file = await self._write(now)
                if self._sums and (roll or self._is_due(now)):
                    await self._roll(file)
            except OSError as error:
                log.error("journal.write_failed", error=str(error), remedy="Free space on the gateway's disk.")

    async def close(self) -> None:
        """End `run` and write all that is known; the next process delivers what has not been acknowledged."""
        self._stop.set()
        await self.step(0.0, roll=True)
        try:
            await asyncio.to_thread(self.keep(self._place()))
        except OSError as error:
            log.error("journal.write_failed", error=str(error), remedy="Free space on the gateway's disk.")
        if self._file is not None and not (self._sums or self._fresh or self._unwritten or self._at_engines):
            self._file.drop()
            self._file = None

    def _is_due(self, now: float) -> bool:
        if len(self._sums) >= MAX_ROWS or (self._file is not None and self._file.size >= MAX_OPEN_BYTES):
            return True
        if not self.is_connected() or len(self.waiting) >= MAX_WAITING:
            return False
        return self._opened_at is None or now - self._opened_at >= ROLL_S

    async def _write(self, now: float) -> OpenFile:
        """Put into the open file what is not there, and the file onto the disk."""
        file = self._file
        if file is None:
            file = await asyncio.to_thread(self._make)
            self._use(file)
        await asyncio.to_thread(file.reserve)
        file.extend()
        written = 0
        for record in self._unwritten:
            if not file.append(encode_line(record) + b"\n"):
                break
            written += 1
        self._fresh += self._unwritten[:written]
        del self._unwritten[:written]
        if self._fresh:
            if not self._sums:
                self._opened_at = now
            self._sum_up()
            await asyncio.to_thread(file.sync)
        return file

    def _sum_up(self) -> None:
        fresh, self._fresh = self._fresh, []
        add_up(self._sums, fresh)

    async def _roll(self, before: OpenFile) -> None:
        """Lines go to a new file from one moment on; the rows of the old one are written, and it is dropped."""
        after = await asyncio.to_thread(self._make)
        self._sum_up()
        sums, self._sums = self._sums, {}
        self._use(after)
        keep = self.keep(self._place())
        batch = UsageBatch(batch_id=before.path.stem, rows=rows_of(sums))
        try:
            await asyncio.to_thread(keep)
            await asyncio.to_thread(write_whole, before.path.with_suffix(".batch"), encode_line(batch))
        except OSError:
            self._take_back(before, after, sums)
            raise
        await asyncio.to_thread(before.drop)
        self.waiting[batch.batch_id] = batch
        self.delivered.clear()
        self.on_batch(batch)

    def _place(self) -> Place:
        """Where the next line goes."""
        return Place() if self._file is None else Place(self._file.path.stem, self._file.size)

    def _make(self) -> OpenFile:
        return OpenFile(self._folder / f"{time.time_ns():016x}{secrets.token_hex(8)}.open")

    def _use(self, file: OpenFile) -> None:
        self._file, self._opened_at = file, None
        for line in self._at_engines.values():
            file.append(line)

    def _take_back(self, before: OpenFile, after: OpenFile, sums: dict[Group, list[int]]) -> None:
        """The batch could not be written: go on with the old file; what the new one has taken is written there anew."""
        self._file = before
        self._unwritten, self._fresh = self._fresh + self._unwritten, []
        self._sums = sums
        for line in self._at_engines.values():
            before.append(line)
        after.drop()


def _nothing() -> None:
    """There is nothing to keep."""


def seal(folder: Path) -> None:
    """Make batches of the open files of a process that is gone. May be cut at any moment, and done again."""
    for path in folder.glob("*.tmp"):
        path.unlink()
    paths = sorted(folder.glob("*.open"))  # by age, as they are named
    found = recovered([read_lines(path.read_bytes(), path.name) for path in paths])
    for path, records in zip(paths, found, strict=True):
        batch = path.with_suffix(".batch")
        if records and not batch.exists():
            write_whole(batch, encode_line(UsageBatch(batch_id=path.stem, rows=sum_rows(records))))
    for path in paths:
        path.unlink()
