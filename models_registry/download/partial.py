"""One file on its way: a part at its full size, a journal of what of it is there, and the hash as far as it goes.

The journal is written after the bytes have been synced, so what it names is there after `kill -9` and after a power
cut; what came later is fetched again. A lock on the part makes sure that one process writes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from pathlib import Path

import msgspec

from models_registry.download.spans import Spans
from models_registry.errors import NoSpace

_READ_BYTES = 4 << 20


class _Journal(msgspec.Struct):
    identity: str
    size: int
    spans: list[tuple[int, int]]


class Done(msgspec.Struct, frozen=True):
    """A file that is whole and verified."""

    sha256: str
    size: int


class Busy(Exception):
    """Another process, or another transfer of this one, is fetching it."""


class Partial:
    """`path` is where the file will be; beside it lie `.part` and `.part.json` until then, and `.ok` from then on.

    `identity` tells one content from another (a hash, or an ETag): a part of another identity is thrown away.
    """

    def __init__(self, path: Path, size: int, identity: str) -> None:
        self.path = path
        self.size = size
        self.identity = identity
        self.spans = Spans()
        self._part = _part_of(path)
        self._journal = _journal_of(path)
        self._ok = _ok_of(path)
        self._fd = -1
        self._sha256 = hashlib.sha256()
        self._hashed = 0
        self._noted = -1

    def done(self) -> Done | None:
        """When an earlier transfer has finished it."""
        try:
            found = msgspec.json.decode(self._ok.read_bytes(), type=Done)
            return found if found.size == self.size == self.path.stat().st_size else None
        except (OSError, msgspec.DecodeError):
            return None

    def bytes_on_disk(self) -> int:
        """That an earlier transfer has reserved already."""
        try:
            return min(self.size, self._part.stat().st_blocks * 512)
        except OSError:
            return 0

    def open(self) -> None:
        """Take up what is there, or begin. Raises Busy, NoSpace; then it is not open."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink == 0:  # finished, or dropped, by another at this very moment
                raise Busy
            self.spans = self._noted_spans(os.fstat(fd).st_size)
            if not self.spans.total:
                self._forget_journal()
            if os.fstat(fd).st_size > self.size:
                os.ftruncate(fd, self.size)
            if self.size:
                os.posix_fallocate(fd, 0, self.size)
        except BlockingIOError as error:
            os.close(fd)
            raise Busy from error
        except OSError as error:
            os.close(fd)
            raise no_space(self.path, error) or error from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    @property
    def is_whole(self) -> bool:
        return self.spans.prefix_end >= self.size

    def write(self, at: int, data: bytes) -> None:
        """Raises NoSpace, OSError."""
        view, end = memoryview(data), at + len(data)
        start = at
        try:
            while view:
                written = os.pwrite(self._fd, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            raise no_space(self.path, error) or error from error
        self.spans.add(start, end)

    def read(self, at: int, count: int) -> bytes:
        return os.pread(self._fd, count, at)

    def checkpoint(self) -> None:
        """Make what is there survive anything. In a thread: it waits for the disk."""
        spans = list(self.spans)
        total = sum(end - start for start, end in spans)
        if total == self._noted:
            return
        os.fdatasync(self._fd)
        _write_whole(self._journal, msgspec.json.encode(_Journal(self.identity, self.size, spans)))
        self._noted = total

    @property
    def unhashed(self) -> int:
        """Bytes that could be hashed now."""
        return self.spans.prefix_end - self._hashed

    def hash_on(self) -> None:
        """Hash what has become contiguous. In a thread; the bytes are in the page cache, as a rule."""
        buffer = memoryview(bytearray(min(_READ_BYTES, max(1, self.unhashed))))
        while (left := self.spans.prefix_end - self._hashed) > 0:
            count = os.preadv(self._fd, [buffer[: min(left, len(buffer))]], self._hashed)
            if count <= 0:
                raise OSError(errno.EIO, f"{self._part} is shorter than it was")
            self._sha256.update(buffer[:count])
            self._hashed += count

    def digest(self) -> str:
        """sha256, once all of it has been hashed."""
        if self._hashed != self.size:
            raise ValueError("not all of it has been hashed")
        return self._sha256.hexdigest()

    def git_sha1(self) -> str:
        """Hash of the file as a git blob: all that the Hub tells of small ones."""
        digest = hashlib.sha1(b"blob %d\0" % self.size)  # noqa: S324 - git's
        for at in range(0, self.size, _READ_BYTES):
            digest.update(self.read(at, min(_READ_BYTES, self.size - at)))
        return digest.hexdigest()

    def forget_hash(self) -> None:
        """Begin to hash from the start: a block was replaced."""
        self._sha256, self._hashed = hashlib.sha256(), 0

    def finish(self, sha256: str) -> Done:
        """Whole and verified: put it in its place, for good."""
        os.fsync(self._fd)
        os.fchmod(self._fd, 0o444)
        found = Done(sha256, self.size)
        _write_whole(self._ok, msgspec.json.encode(found))
        self._part.replace(self.path)
        self._journal.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        self.close()
        return found

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def drop(self) -> None:
        """Delete everything of it."""
        for path in (self._journal, self._part, self._ok, self.path):
            path.unlink(missing_ok=True)
        self.close()

    def _forget_journal(self) -> None:
        """One that is there is of an earlier part: of this one, once it has its full size, it would be believed."""
        with contextlib.suppress(FileNotFoundError):
            self._journal.unlink()
            sync_folder(self.path.parent)

    def _noted_spans(self, on_disk: int) -> Spans:
        journal = _read_journal(self._journal)
        if journal is None or (journal.identity, journal.size) != (self.identity, self.size):
            return Spans()
        return Spans((start, end) for start, end in journal.spans if 0 <= start < end <= min(self.size, on_disk))


def give_back(path: Path) -> None:
    """Free the room that is reserved for what of a file has not come; what came stays. Nothing while it is fetched."""
    part, journal = _part_of(path), _journal_of(path)
    with contextlib.suppress(FileNotFoundError, BlockingIOError), part.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        noted = _read_journal(journal)
        end = max((end for _, end in noted.spans), default=0) if noted else 0
        if end:
            file.truncate(min(end, os.fstat(file.fileno()).st_size))
        else:
            journal.unlink(missing_ok=True)
            part.unlink(missing_ok=True)


def keep(path: Path) -> None:
    """What of a file has come is still wanted: it is not old."""
    for one in (path, _part_of(path), _journal_of(path), _ok_of(path)):
        with contextlib.suppress(FileNotFoundError):
            os.utime(one)


def _ok_of(path: Path) -> Path:
    return path.with_name(path.name + ".ok")


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".part.json")


def _read_journal(path: Path) -> _Journal | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Journal)
    except (OSError, msgspec.DecodeError):
        return None


def no_space(path: Path, error: OSError) -> NoSpace | None:
    """What to tell when the disk is full; None for any other error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return NoSpace(f"The disk of {path.parent} became full.")


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlast a loss of power."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
