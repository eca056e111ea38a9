"""Progress lines of the launcher: what is done, how long it took, and what a long step is doing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Step:
    """A running step; `detail` shows what it is at, on a terminal."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self._title = title
        self._stream = stream
        self._shown = ""
        self._shown_at = time.monotonic()

    def detail(self, text: str) -> None:
        """Show `text` beside the title; on a plain stream as a line, at most every 10 s."""
        if text == self._shown:
            return
        now = time.monotonic()
        if self._stream.isatty():
            print(f"\r\x1b[2K  … {self._title}: {text}"[:160], end="", file=self._stream, flush=True)
        elif now - self._shown_at > 10:
            print(f"  … {self._title}: {text}", file=self._stream, flush=True)
        else:
            return
        self._shown, self._shown_at = text, now


@contextmanager
def step(title: str, stream: TextIO | None = None) -> Iterator[Step]:
    """Shows `title` while the block runs, then a tick and the time it took, or a cross."""
    out = stream or sys.stderr
    started = time.monotonic()
    if out.isatty():
        print(f"  … {title}", end="", file=out, flush=True)
    try:
        yield Step(title, out)
    except BaseException:
        _finish(out, "✗", title, started)
        raise
    _finish(out, "✓", title, started)


def _finish(out: TextIO, mark: str, title: str, started: float) -> None:
    start = "\r\x1b[2K" if out.isatty() else ""
    print(f"{start}  {mark} {title} ({time.monotonic() - started:.1f} s)", file=out, flush=True)


def say(text: str) -> None:
    """A line of the launcher itself."""
    print(text, file=sys.stderr, flush=True)
