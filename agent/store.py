"""The model files of this server: blobs by sha256, checked out as hard links into one folder a manifest.

HOME/blobs/ab/abcd...            whole and verified, mode 0444
HOME/blobs/partial/abcd....part  on its way; a download goes on where it ended
HOME/models/<digest>/            a checkout: there only when it is complete
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import IO, Protocol

import structlog

from agent.errors import CannotRun, CorruptBlob, DiskFull, FetchFailed
from wire.errors import BadMessage
from wire.manifest import Manifest, ManifestFile, check_manifest

DISK_RESERVE_BYTES = 256 * 2**20
"""Never filled by downloads."""
_PIECE_BYTES = 2**20
_PROGRESS_EVERY_S = 0.5

log = structlog.get_logger(__name__)


class BlobStream(Protocol):
    """An open download: it starts at `offset`, which may be less than what was asked for."""

    offset: int

    def pieces(self) -> AsyncIterator[bytes]: ...


class BlobSource(Protocol):
    """Where blobs come from (the master). Raises FetchFailed, also while reading."""

    def open(self, file: ManifestFile, offset: int) -> AbstractAsyncContextManager[BlobStream]: ...


class Store:
    """Blobs and checkouts below one folder. Safe for any number of fetches at once; one process owns it."""

    def __init__(self, root: Path, source: BlobSource, *, quota_bytes: int | None = None) -> None:
        self._blobs = root / "blobs"
        self._partial = root / "blobs" / "partial"
        self._models = root / "models"
        self._source = source
        self._quota_bytes = quota_bytes
        self._locks: dict[str, asyncio.Lock] = {}
        self._checkout_lock = asyncio.Lock()
        self._fetching: list[Manifest] = []
        self._evicting = threading.RLock()
        self.in_use: Callable[[], Collection[Manifest]] = lambda: ()
        """Manifests that must stay."""

    def model_dir(self, manifest: Manifest) -> Path:
        return self._models / manifest.digest

    def has(self, manifest: Manifest) -> bool:
        return self.model_dir(manifest).is_dir()

    async def fetch(self, manifest: Manifest, progress: Callable[[float], None]) -> Path:
        """Folder with the files of `manifest`, once every one is here and its sha256 was checked.

        Raises:
            CannotRun: the manifest is damaged.
            FetchFailed: not now (no connection, wrong bytes, no disk); what came already is kept.
        """
        try:
            check_manifest(manifest)
        except BadMessage as error:
            raise CannotRun(
                f"the model's manifest is damaged: {error.message}", remedy="Import the model again."
            ) from error
        if self.has(manifest):
            return self.model_dir(manifest)
        self._fetching.append(manifest)
        watcher = asyncio.create_task(self._report(manifest, progress))
        try:
            await asyncio.to_thread(self._make_room, manifest)
            for file in manifest.files:
                await self._fetch_blob(file)
            return await self._check_out(manifest)
        finally:
            watcher.cancel()
            self._fetching.remove(manifest)

    def blob(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

    def part(self, sha256: str) -> Path:
        return self._partial / f"{sha256}.part"

    def collect_garbage(self, coming_bytes: int = 0) -> int:
        """Remove the longest unused checkouts and blobs over the quota, never any in use; bytes freed.

        `coming_bytes` are about to be added.
        """
        if self._quota_bytes is None:
            return 0
        with self._evicting:
            total = sum(path.stat().st_size for path in self._whole_blobs())
            return self._evict(total + coming_bytes - self._quota_bytes)

    def mark_used(self, manifest: Manifest) -> None:
        """It was in use until now: it goes last."""
        for file in manifest.files:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.blob(file.sha256))

    def _whole_blobs(self) -> list[Path]:
        return [path for path in self._blobs.glob("??/*") if path.is_file()]

    def _evict(self, excess_bytes: int) -> int:
        """Free that much, or as much as is not in use."""
        if excess_bytes <= 0:
            return 0
        kept = [*self.in_use(), *self._fetching]
        kept_digests = {manifest.digest for manifest in kept}
        kept_blobs = {file.sha256 for manifest in kept for file in manifest.files}
        for folder in self._models.glob("[!.]*"):  # those with a dot are being made
            if folder.name not in kept_digests:
                shutil.rmtree(folder, ignore_errors=True)
        unused = [path for path in self._whole_blobs() if path.name not in kept_blobs]
        unused += [path for path in self._partial.glob("*.part") if path.stem not in kept_blobs]
        freed = 0
        for path in sorted(unused, key=lambda path: path.stat().st_mtime):
            if freed >= excess_bytes:
                break
            freed += path.stat().st_size
            path.unlink()
        log.info("store.garbage_collected", freed_bytes=freed, asked_bytes=excess_bytes)
        return freed

    async def _fetch_blob(self, file: ManifestFile) -> None:
        async with self._locks.setdefault(file.sha256, asyncio.Lock()):  # who comes second finds it done
            blob = self.blob(file.sha256)
            if blob.exists():
                os.utime(blob)  # used lately
                return
            blob.parent.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(parents=True, exist_ok=True)
            await self._download(file)
            part = self.part(file.sha256)
            part.chmod(0o444)
            part.replace(blob)

    async def _download(self, file: ManifestFile) -> None:
        """Bring the part file to its full length; leaves it only if its bytes fit."""
        part = self.part(file.sha256)
        digest, offset = await asyncio.to_thread(_digest_of, part)
        if offset > file.size_bytes:
            part.unlink()
            digest, offset = hashlib.sha256(), 0
        if offset < file.size_bytes or not part.exists():
            async with self._source.open(file, offset) as stream:
                if stream.offset == 0 and offset:
                    digest, offset = hashlib.sha256(), 0
                try:
                    with part.open("r+b" if offset else "wb") as out:
                        out.seek(offset)
                        out.truncate()
                        async for piece in stream.pieces():
                            offset += len(piece)
                            if offset > file.size_bytes:
                                break
                            await asyncio.to_thread(_append, out, digest, piece)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise DiskFull(f"the disk became full while {file.path} was fetched") from error
                    raise
        if offset < file.size_bytes:
            raise CorruptBlob(
                f"{file.path}: the master sent {offset} of {file.size_bytes} bytes", remedy="It is resumed."
            )
        if offset > file.size_bytes or digest.hexdigest() != file.sha256:
            part.unlink(missing_ok=True)
            raise CorruptBlob(f"{file.path}: the bytes received do not fit sha256 {file.sha256[:12]}: thrown away")

    def _make_room(self, manifest: Manifest) -> None:
        """Raises DiskFull when the files do not fit, with all that is unused gone."""
        here = {path.name: path.stat().st_size for path in self._partial.glob("*.part")}
        missing = {file.sha256: file for file in manifest.files if not self.blob(file.sha256).exists()}
        needed = sum(max(0, file.size_bytes - here.get(f"{file.sha256}.part", 0)) for file in missing.values())
        if not needed:
            return
        self.collect_garbage(needed)
        self._blobs.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._blobs).free
        if free < needed + DISK_RESERVE_BYTES:
            with self._evicting:
                free += self._evict(needed + DISK_RESERVE_BYTES - free)
        if free < needed + DISK_RESERVE_BYTES:
            raise DiskFull(
                f"the disk is too full: {needed / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are free "
                f"(of which {DISK_RESERVE_BYTES / 2**20:.0f} MiB stay reserved)"
            )

    async def _report(self, manifest: Manifest, progress: Callable[[float], None]) -> None:
        total = max(1, manifest.size_bytes)
        while True:
            done = 0
            for file in manifest.files:
                for path in (self.blob(file.sha256), self.part(file.sha256)):
                    if path.exists():
                        done += min(file.size_bytes, path.stat().st_size)
                        break
            progress(min(1.0, done / total))
            await asyncio.sleep(_PROGRESS_EVERY_S)

    async def _check_out(self, manifest: Manifest) -> Path:
        async with self._checkout_lock:
            if not self.has(manifest):
                await asyncio.to_thread(self._link, manifest)
        return self.model_dir(manifest)

    def _link(self, manifest: Manifest) -> None:
        """Built aside, then moved into place whole. Readable by all: an engine may run as another user."""
        self._models.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._models, prefix=".new-"))
        try:
            folder.chmod(0o755)
            for file in manifest.files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.blob(file.sha256), target)
            folder.rename(self.model_dir(manifest))
        except FileNotFoundError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise FetchFailed("a file of the model went away while it was checked out") from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _append(out: IO[bytes], digest: hashlib._Hash, piece: bytes) -> None:
    out.write(piece)
    digest.update(piece)


def _digest_of(part: Path) -> tuple[hashlib._Hash, int]:
    """(running sha256, length) of what an earlier attempt left."""
    digest, length = hashlib.sha256(), 0
    try:
        with part.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                length += len(piece)
    except FileNotFoundError:
        return digest, 0
    return digest, length
