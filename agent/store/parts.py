"""A blob on its way: a file of full size with holes, and which of its pieces are there.

HOME/blobs/partial/<sha256>.part    the bytes
HOME/blobs/partial/<sha256>.have    pieces that are on disk for sure (JSON of `_Have`), as of the last `flush`
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from agent.errors import DiskFull
from agent.home import write_whole
from wire.errors import BadMessage
from wire.manifest import ManifestFile
from wire.pieces import PIECE_BYTES, pack, piece_count, piece_span, unpack

log = structlog.get_logger(__name__)


class _Have(msgspec.Struct, frozen=True):
    size_bytes: int
    done: str


class Part:
    """Opened by `open_part`; `close` it. Its methods block: they are for threads, but for `done` and `mark`."""

    def __init__(self, file: ManifestFile, path: Path, handle: int, done: set[int]) -> None:
        self.file = file
        self.path = path
        self.done = done
        self.count = piece_count(file.size_bytes)
        self._handle = handle
        self._flushed = set(done)

    @property
    def is_whole(self) -> bool:
        return len(self.done) == self.count

    @property
    def done_bytes(self) -> int:
        last = self.count - 1
        missing = self.count * PIECE_BYTES - self.file.size_bytes if last in self.done else 0
        return len(self.done) * PIECE_BYTES - missing

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Raises DiskFull."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._handle, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise _full(error, self.file) from error

    def read(self, start: int, length: int) -> bytes:
        return os.pread(self._handle, length, start)

    def mark(self, piece: int) -> None:
        self.done.add(piece)

    def flush(self) -> None:
        """Make what is done outlast a loss of power."""
        done = set(self.done)
        if done == self._flushed:
            return
        os.fdatasync(self._handle)
        have = _Have(self.file.size_bytes, pack(done, self.count))
        write_whole(_have_path(self.path), msgspec.json.encode(have))
        self._flushed = done

    def recheck(self, hashes: Sequence[bytes]) -> None:
        """Find out by reading which pieces are there: nobody wrote it down."""
        for piece in range(self.count):
            start, end = piece_span(piece, self.file.size_bytes)
            if hashlib.sha256(self.read(start, end - start)).digest() == hashes[piece]:
                self.done.add(piece)

    def finish(self, blob: Path) -> None:
        """Move it, whole and checked, into its place."""
        os.fsync(self._handle)
        os.fchmod(self._handle, 0o444)
        self.path.replace(blob)
        _have_path(self.path).unlink(missing_ok=True)

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        _have_path(self.path).unlink(missing_ok=True)
        self.done.clear()

    def close(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)


def open_part(file: ManifestFile, folder: Path, hashes: Sequence[bytes]) -> Part:
    """The part of `file`, with its disk space reserved, as far as an earlier attempt came. Raises DiskFull."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file.sha256}.part"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        there = os.fstat(handle).st_size
        if there > file.size_bytes:
            os.ftruncate(handle, 0)
            there = 0
        if file.size_bytes > there:
            _reserve(handle, file)
        done = _written_down(path, file)
        part = Part(file, path, handle, done or set())
        if done is None and there:
            part.recheck(hashes)
    except BaseException:
        os.close(handle)
        raise
    return part


def _reserve(handle: int, file: ManifestFile) -> None:
    try:
        os.posix_fallocate(handle, 0, file.size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise _full(error, file) from error
        os.ftruncate(handle, file.size_bytes)  # a file system that cannot reserve


def _written_down(path: Path, file: ManifestFile) -> set[int] | None:
    """Pieces that were flushed; None: it does not say."""
    try:
        have = msgspec.json.decode(_have_path(path).read_bytes(), type=_Have)
        if have.size_bytes == file.size_bytes:
            return unpack(have.done, piece_count(file.size_bytes))
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, BadMessage, OSError) as error:
        log.warning("part.have_unreadable", sha256=file.sha256, error=str(error))
    with contextlib.suppress(FileNotFoundError):
        _have_path(path).unlink()
    return None


def _have_path(part: Path) -> Path:
    return part.with_suffix(".have")


def _full(error: OSError, file: ManifestFile) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk became full while {file.path} was fetched")
    return error
