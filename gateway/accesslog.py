"""Access log: one JSON line a request on stderr. No prompts, no answers; keys by their prefix only.

Lines are collected and written by one task in a thread, because a slow reader of stderr must not slow down requests.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

_FLUSH_S = 0.2
_MAX_WAITING = 100_000
_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


class Line(msgspec.Struct, gc=False):
    """One request that has ended."""

    timestamp: str
    path: str
    status: int
    model: str
    key: str | None
    instance: str
    stream: bool
    prompt_tokens: int
    completion_tokens: int
    took_ms: float
    ttft_ms: float | None
    request_id: str
    event: str = "request"
    level: str = "info"


class AccessLog:
    """`add` is cheap and never waits; `run` is the one task that writes. `write` takes bytes of whole lines."""

    def __init__(self, write: Callable[[bytes], object] | None = None) -> None:
        self._write = write or _to_stderr
        self._lines: list[Line] = []
        self._dropped = 0

    def add(self, line: Line) -> None:
        """Take it, if not too many wait already."""
        if len(self._lines) >= _MAX_WAITING:
            self._dropped += 1
        else:
            self._lines.append(line)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        """Write what has been collected."""
        lines, self._lines = self._lines, []
        dropped, self._dropped = self._dropped, 0
        if not lines and not dropped:
            return
        data = _encode_lines(lines)
        if dropped:
            at = moment(time.time())
            data += _encode({"timestamp": at, "event": "lines_dropped", "level": "warning", "count": dropped}) + b"\n"
        try:
            self._write(data)
        except OSError:  # a full disk, or nobody reads it any more: serving does not depend on the log
            self._dropped += len(lines) + dropped


def moment(unix_s: float) -> str:
    """UTC, ISO 8601, to the millisecond."""
    second = int(unix_s)
    return f"{_second(second)}.{int((unix_s - second) * 1000):03d}+00:00"


@functools.lru_cache(maxsize=4)
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _to_stderr(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
