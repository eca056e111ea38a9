"""`logs`: what the processes write, together or one of them, to the end or as it comes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TextIO

from config.launcher.errors import LauncherError
from config.launcher.installation import Installation
from config.launcher.supervision import last_lines

_LINES = 100
_POLL_S = 0.3


def logs(installation: Installation, process: str | None, *, follow: bool) -> int:
    """Print the last lines, and with `follow` every new one until interrupted."""
    files = _files(installation, process)
    width = max(len(name) for name in files)
    for name, path in files.items():
        for line in last_lines(path, _LINES if process else _LINES // 4):
            print(line if process else f"{name:<{width}} | {line}", flush=not follow)
    if follow:
        _follow({name if not process else "": path for name, path in files.items()}, width)
    return 0


def _files(installation: Installation, process: str | None) -> dict[str, Path]:
    folder = installation.home.logs
    found = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if not found:
        raise LauncherError(f"there are no logs in {folder}: has `./stokehold up` run with this home?")
    if process is None:
        return found
    if process not in found:
        raise LauncherError(f"there is no process {process!r}: choose one of {', '.join(found)}.")
    return {process: found[process]}


def _follow(files: dict[str, Path], width: int) -> None:
    tails = {name: _Tail(path) for name, path in files.items()}
    while True:
        for name, tail in tails.items():
            for line in tail.new_lines():
                print(f"{name:<{width}} | {line}" if name else line, flush=True)
        time.sleep(_POLL_S)


class _Tail:
    """Reads what is appended to a file, over its rotation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._rest = ""
        self._open(at_end=True)

    def new_lines(self) -> list[str]:
        """Whole lines that came since the last call."""
        lines = self._read()
        if self._rotated():
            self._open(at_end=False)
            lines += self._read()
        return lines

    def _open(self, *, at_end: bool) -> None:
        if self._file:
            self._file.close()
        try:
            self._file = self._path.open(errors="replace")
        except FileNotFoundError:
            self._file = None
            return
        if at_end:
            self._file.seek(0, 2)

    def _read(self) -> list[str]:
        if self._file is None:
            return []
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        return lines

    def _rotated(self) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False
        if self._file is None:
            return True
        import os

        opened = os.fstat(self._file.fileno())
        return now.st_ino != opened.st_ino or now.st_size < self._file.tell()
