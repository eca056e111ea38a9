"""Locks that end with the process that has them, however it ends: `flock` on files."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_NAME = ".lock"
"""In a folder that belongs to a process."""


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether this process has the lock file `path`: False while another, living process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):  # the latter: its holder ended it just now
            mine = False
        try:
            yield mine
        finally:
            if mine:
                path.unlink(missing_ok=True)


def is_abandoned(folder: Path) -> bool:
    """Whether the process that made a staging folder is gone: its lock ended with it."""
    try:
        with (folder / LOCK_NAME).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:  # just being made, or its maker died at that very moment
        with suppress(FileNotFoundError):
            return time.time() - folder.stat().st_mtime > 60
        return False
