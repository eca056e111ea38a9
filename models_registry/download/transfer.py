"""One fetch of many files, from its beginning to its end: open, fetch, hash along, verify, mend, put in place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from models_registry.download.lanes import Control, Lanes, Piece, Source
from models_registry.download.partial import Busy, Done, Partial
from models_registry.download.remote import Remote
from models_registry.download.spans import pieces
from models_registry.errors import ImportCancelled, NoSpace, WrongHash

log = structlog.get_logger(__name__)

PIECE_BYTES = 32 << 20
BLOCK_BYTES = 16 << 20
"""Fetched again, and compared, when a hash is wrong."""
SPARE_BYTES = 64 << 20
"""Left free on the disk."""
_MOST_OPEN = 64
_RESERVED_FROM = 1 << 20
_TICK_S, _CHECKPOINT_S = 0.25, 2.0
_HASH_AHEAD = 8 << 20


@dataclass(frozen=True)
class Wanted:
    """A file to fetch to `path`, of `size` bytes. `sha256` or `git_sha1` (of git's blob) when the source tells it."""

    path: Path
    size: int
    remote: Remote
    sha256: str = ""
    git_sha1: str = ""

    @property
    def identity(self) -> str:
        return self.sha256 or self.git_sha1 or self.remote.etag or self.remote.url


@dataclass(frozen=True)
class Progress:
    """Of one fetch. `files` has (name, bytes there, bytes in all)."""

    done_bytes: int
    total_bytes: int
    bytes_per_second: float
    files: tuple[tuple[str, int, int], ...]

    @property
    def eta_s(self) -> float | None:
        left = self.total_bytes - self.done_bytes
        return left / self.bytes_per_second if self.bytes_per_second > 0 else None


@dataclass(eq=False)
class _File:
    wanted: Wanted
    partial: Partial
    source: Source
    done: Done | None = None
    hashing: asyncio.Task[None] | None = None
    noting: asyncio.Task[None] | None = None
    finishing: asyncio.Task[None] | None = None

    @property
    def there(self) -> int:
        return self.partial.size if self.done is not None else self.partial.spans.total


class Transfer:
    """Use it once, by `run`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        connections: int,
        wanted: Sequence[Wanted],
        control: Control,
        progress: Callable[[Progress], None],
        spare_bytes: int,
    ) -> None:
        self._control = control
        self._progress = progress
        self._spare_bytes = spare_bytes
        self._lanes = Lanes(session, connections, control)
        self._files = [_file(one) for one in wanted]
        self._todo = deque(self._files)
        self._open: set[_File] = set()
        self._busy: list[_File] = []
        self._queue_at_least = 2 * connections
        workers = min(4, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="hash")
        self._checkpoint_at = time.monotonic()

    async def run(self) -> list[Done]:
        """As `Downloader.fetch`."""
        watch: asyncio.Task[None] | None = None
        try:
            await self._in_thread(self._reserve)
            watch = asyncio.create_task(self._watch())
            while self._todo or self._open or self._busy:
                if self._control.cancelled:
                    raise ImportCancelled("The import was cancelled.")
                await self._take_up()
                await self._lanes.step()
                self._finish_whole()
            self._tell()
            return [file.done for file in self._files if file.done is not None]
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
            await self._close()

    # ---------------------------------------------------------------------------------------- files

    def _reserve(self) -> None:
        """Before the first byte: room for all of it. Raises NoSpace; then nothing was taken."""
        needed: dict[Path, int] = {}
        for file in self._files:
            folder = file.wanted.path.parent
            folder.mkdir(parents=True, exist_ok=True)
            if file.partial.done() is None:
                needed[folder] = needed.get(folder, 0) + file.partial.size - file.partial.bytes_on_disk()
        for folder, count in needed.items():
            free = shutil.disk_usage(folder).free
            if count > 0 and count + self._spare_bytes > free:
                raise NoSpace(
                    f"{count / 1e9:.2f} GB are to be fetched (and {self._spare_bytes / 1e9:.2f} GB are to stay free),"
                    f" but only {free / 1e9:.2f} GB are free in {folder}."
                )
        for file in self._files:
            if file.partial.size >= _RESERVED_FROM and file.partial.done() is None:
                with contextlib.suppress(Busy):
                    file.partial.open()
                    file.partial.close()

    async def _take_up(self) -> None:
        """Open the next files, so that no connection is without work. A file that another has waits its turn."""
        self._todo.extend(self._busy)
        self._busy.clear()
        while self._todo and len(self._open) < _MOST_OPEN and self._lanes.waiting < self._queue_at_least:
            file = self._todo.popleft()
            file.done = file.partial.done()
            if file.done is not None:
                continue
            try:
                await self._in_thread(file.partial.open)
            except Busy:
                self._busy.append(file)
                continue
            file.done = file.partial.done()  # by one that ended between the two looks
            if file.done is not None:
                file.partial.close()
                continue
            self._open.add(file)
            for start, end in pieces(file.partial.spans.missing(file.partial.size), PIECE_BYTES):
                self._lanes.add(Piece(file.source, start, end))

    def _finish_whole(self) -> None:
        for file in self._open:
            if file.finishing is None and file.partial.is_whole and not self._lanes.has(file.source):
                file.finishing = asyncio.create_task(self._finish(file))

    async def _finish(self, file: _File) -> None:
        """Hash the rest, compare, and put it in its place."""
        partial = file.partial
        try:
            for under_way in (file.hashing, file.noting):
                if under_way is not None:
                    await under_way
            await self._in_thread(partial.hash_on)
            if not await self._is_right(file):
                log.warning("download.wrong_hash", file=file.wanted.remote.name)
                await self._mend(file)
            file.done = await self._in_thread(partial.finish, partial.digest())
            self._open.discard(file)
        except Exception as error:
            self._lanes.failure = self._lanes.failure or error
        self._lanes.wake()

    async def _is_right(self, file: _File) -> bool:
        wanted, partial = file.wanted, file.partial
        if wanted.sha256:
            return partial.digest() == wanted.sha256
        return not wanted.git_sha1 or await self._in_thread(partial.git_sha1) == wanted.git_sha1

    async def _mend(self, file: _File) -> None:
        """Fetch every block again and replace those that differ. Raises WrongHash when that does not make it right."""
        partial, replaced = file.partial, 0
        for start, end in pieces([(0, partial.size)], BLOCK_BYTES):
            again = await self._lanes.read(file.source, start, end)
            if await self._in_thread(partial.read, start, end - start) != again:
                partial.write(start, again)
                replaced += 1
        partial.forget_hash()
        await self._in_thread(partial.hash_on)
        if replaced and await self._is_right(file):
            log.info("download.mended", file=file.wanted.remote.name, blocks=replaced)
            return
        said = file.wanted.sha256 or file.wanted.git_sha1
        got = partial.digest() if file.wanted.sha256 else await self._in_thread(partial.git_sha1)
        partial.drop()  # nothing of it can be trusted
        raise WrongHash(f"{file.wanted.remote.name}: the source says its hash is {said}, but what it sends has {got}.")

    async def _close(self) -> None:
        await self._lanes.close()
        tasks = [task for file in self._files for task in (file.hashing, file.finishing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)  # waits for what a thread still does with a file
        for file in self._files:
            if file.partial.is_open:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(file.partial.checkpoint)
                file.partial.close()

    # ---------------------------------------------------------------------------------------- a look now and then

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                self._lanes.meter.tick(time.monotonic())
                self._tell()
                self._hash_along()
                self._lanes.drop_slow()
                await self._note()
            except Exception as error:
                self._lanes.failure = self._lanes.failure or error
            self._lanes.wake()

    def _tell(self) -> None:
        files = tuple((file.wanted.remote.name, file.there, file.partial.size) for file in self._files)
        done, total = sum(one[1] for one in files), sum(one[2] for one in files)
        self._progress(Progress(done, total, self._lanes.meter.rate, files))

    def _hash_along(self) -> None:
        for file in self._open:
            if file.hashing is not None and file.hashing.done() and (error := file.hashing.exception()) is not None:
                raise error
            is_free = file.finishing is None and (file.hashing is None or file.hashing.done())
            if is_free and file.partial.unhashed >= _HASH_AHEAD:
                file.hashing = asyncio.create_task(self._in_thread(file.partial.hash_on))

    async def _note(self) -> None:
        now = time.monotonic()
        if now - self._checkpoint_at < _CHECKPOINT_S:
            return
        self._checkpoint_at = now
        for file in list(self._open):
            if file.finishing is None:
                file.noting = asyncio.create_task(asyncio.to_thread(file.partial.checkpoint))
                await file.noting
        for folder in {file.wanted.path.parent for file in self._open}:
            if shutil.disk_usage(folder).free < self._spare_bytes // 4:
                raise NoSpace(f"Something else has filled the disk of {folder}: less than the low-water mark is free.")

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _file(wanted: Wanted) -> _File:
    partial = Partial(wanted.path, wanted.size, wanted.identity)
    return _File(wanted, partial, Source(wanted.remote, wanted.size, partial.write))
