"""A file that grows by lines written straight into its memory: no system call, and `kill -9` loses nothing.

The pages belong to the kernel from the moment of writing; `sync` makes them outlive a power cut, too. Room is
reserved on the disk beforehand: writing into a mapped hole of a full disk would kill the process (SIGBUS).
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

EXTENT_BYTES = 512 * 1024
"""Reserved at once, and reserved anew when less than half of it is left."""


class OpenFile:
    """One writer; `append` from its thread, `reserve` and `sync` from any."""

    def __init__(self, path: Path) -> None:
        """Make the file. Raises OSError (no room, no such folder), then there is no file."""
        self.path = path
        self.size = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self._fd, 0, EXTENT_BYTES)
            self._reserved = EXTENT_BYTES
            self._memory = mmap.mmap(self._fd, EXTENT_BYTES)
            sync_folder(path.parent)
        except OSError:
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise

    def append(self, line: bytes) -> bool:
        """Write it whole, or nothing when there is no room."""
        end = self.size + len(line)
        if end > len(self._memory):
            return False
        self._memory[self.size : end] = line
        self.size = end
        return True

    def reserve(self) -> None:
        """Room on the disk for what comes next. Raises OSError."""
        if self._reserved - self.size < EXTENT_BYTES // 2:
            os.posix_fallocate(self._fd, self._reserved, EXTENT_BYTES)
            self._reserved += EXTENT_BYTES

    def extend(self) -> None:
        """Use what `reserve` has made; in the thread that appends."""
        if self._reserved > len(self._memory):
            self._memory.resize(self._reserved)

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        self._memory.close()
        os.close(self._fd)

    def drop(self) -> None:
        """Close and delete."""
        self.close()
        self.path.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write so that the file is whole or not there, also after a power cut."""
    temporary = path.with_suffix(".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
