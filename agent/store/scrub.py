"""Reads the blobs here again, those first that were not for the longest time, and has damaged ones mended."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import structlog

from agent.errors import AgentError
from agent.store.store import Store
from wire.manifest import ManifestFile
from wire.messages import CachePolicy

_LOOK_EVERY_S = 600.0
_MEND_EVERY_S = 20.0
_MEND_AT_LEAST_EVERY_S = 600.0
_KEEP_EVERY_S = 5.0
_KEEP_SELDOM = 20
"""Times as long as it took."""
_SKEW_S = 3600.0
_CHUNK_BYTES = 1 << 20
_DROPPED_BYTES = 16 * _CHUNK_BYTES
"""More than the chunk, as the kernel drops what it read ahead only whole; not all of it, as it walks each time through
the pages that an engine has mapped."""
_BURST_S = 1.0
_NICENESS = 15
_DAMAGE = {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO}
"""What a disk or its file system says of bytes that are lost. Other errors are of the agent, not of the file."""

log = structlog.get_logger(__name__)


class Scrub:
    """`run` until cancelled. How often and how fast, the master says (`CachePolicy`)."""

    def __init__(self, store: Store, policy: Callable[[], CachePolicy]) -> None:
        self._store = store
        self._policy = policy
        self._times: dict[str, float] = {}  # sha256 -> when it was read and right, Unix time
        self._keep_at = 0.0
        self._failures, self._mend_at = 0, 0.0
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(1, "scrub", initializer=_yield_to_others)

    async def run(self) -> None:
        self._times = await asyncio.to_thread(self._store.shelf.times, "verified")
        looked: CachePolicy | None = None
        look_at = 0.0
        try:
            while True:
                try:
                    await self._mend()
                    if look_at <= time.monotonic() or looked != self._policy():
                        looked = self._policy()
                        await self._look()
                        look_at = time.monotonic() + min(_LOOK_EVERY_S, looked.scrub_every_s or _LOOK_EVERY_S)
                except Exception:  # a fault of ours: engines and links go on
                    log.exception("scrub.broke_off")
                await asyncio.sleep(_MEND_EVERY_S)
        finally:
            self._stopped.set()
            self._thread.shutdown(wait=False)

    async def _mend(self) -> None:
        if time.monotonic() < self._mend_at:
            return
        try:
            await self._store.mend()
            self._failures = 0
        except Exception as error:  # whatever it is: the others are read all the same
            self._failures += 1
            rest_s = min(_MEND_AT_LEAST_EVERY_S, _MEND_EVERY_S * 2.0 ** min(self._failures, 16))
            self._mend_at = time.monotonic() + rest_s
            foreseen = isinstance(error, AgentError)
            log.warning("scrub.not_mended", reason=str(error), failures=self._failures, exc_info=not foreseen)

    async def _look(self) -> None:
        for file in await asyncio.to_thread(self._due):
            if self._policy().scrub_every_s is None:
                break
            await self._check(file)
            await self._mend()  # what was found just now, and before: all there is may take days to read
        await asyncio.to_thread(self._keep)

    def _due(self) -> list[ManifestFile]:
        """Those to read, the longest unread first."""
        every_s = self._policy().scrub_every_s
        self._tell()
        if every_s is None:
            return []
        now, due = time.time(), []
        for file in self._store.shelf.files().values():
            with suppress(OSError):  # it is on its way, or went just now
                came_at = self._store.shelf.blob(file.sha256).stat().st_mtime
                read_at = self._times.get(file.sha256, came_at)
                if not now - every_s < read_at < now + _SKEW_S:  # one of a clock that was set back is no date
                    due.append((read_at, file))
        return [file for _, file in sorted(due)]

    async def _check(self, file: ManifestFile) -> None:
        path, began = self._store.shelf.blob(file.sha256), time.time()
        try:
            digest = await asyncio.get_running_loop().run_in_executor(self._thread, self._hash, path)
            problem = "" if digest == file.sha256 else "is not what it was"
        except FileNotFoundError:
            return  # evicted
        except OSError as error:
            if error.errno not in _DAMAGE:
                log.warning("scrub.not_read", file=file.path, blob=file.sha256, error=str(error))
                return
            problem = f"cannot be read ({error.strerror or error})"
        if problem:
            await self._store.note_damaged(file, problem)
            return
        self._times[file.sha256] = began
        if self._keep_at <= time.monotonic():
            await asyncio.to_thread(self._keep)

    def _hash(self, path: Path) -> str:
        """sha256 of a file, read slowly and past the page cache: others need that memory. Raises OSError."""
        digest, done_bytes, due = hashlib.sha256(), 0, time.monotonic()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                done_bytes += len(chunk)
                behind = max(0, done_bytes - _DROPPED_BYTES)
                os.posix_fadvise(file.fileno(), behind, done_bytes - behind, os.POSIX_FADV_DONTNEED)
                pace = self._policy().scrub_bytes_per_second
                due = max(due, time.monotonic() - _BURST_S) + (len(chunk) / pace if pace else 0.0)
                if self._stopped.wait(max(0.0, due - time.monotonic())):
                    raise InterruptedError("the agent stops")
        return digest.hexdigest()

    def _keep(self) -> None:
        began = time.monotonic()
        here = self._store.shelf.blob_sizes()
        self._times = {sha256: at for sha256, at in self._times.items() if sha256 in here}
        self._store.shelf.keep_times("verified", self._times)
        self._tell()
        ended = time.monotonic()  # with hundreds of thousands of files it is work of its own
        self._keep_at = ended + max(_KEEP_EVERY_S, _KEEP_SELDOM * (ended - began))

    def _tell(self) -> None:
        """Of each version, when the file that was not read for the longest time was."""
        self._store.verified = {
            label.manifest.digest: round(
                min((self._times.get(file.sha256, 0.0) for file in label.manifest.files), default=0.0)
            )
            for label, _ in self._store.shelf.labels()
        }
        self._store.changed()


def _yield_to_others() -> None:
    with suppress(OSError):  # Linux: of this thread only
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
