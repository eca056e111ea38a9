"""Access log: one JSON line a request on stderr. No prompts, no answers; keys by their prefix only.

Lines are collected and written by one task in a thread, because a slow reader of stderr must not slow down requests.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

_FLUSH_S = 0.2
_MAX_WAITING = 100_000


class AccessLog:
    """`add` is cheap and never waits; `run` is the one task that writes. `write` takes bytes of whole lines."""

    def __init__(self, write: Callable[[bytes], object] | None = None) -> None:
        self._write = write or _to_stderr
        self._lines: list[dict[str, Any]] = []
        self._dropped = 0

    def add(self, at: float, **fields: Any) -> None:
        """`at` is Unix time."""
        if len(self._lines) >= _MAX_WAITING:
            self._dropped += 1
            return
        fields["timestamp"] = at
        self._lines.append(fields)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        """Write what has been collected."""
        lines, self._lines = self._lines, []
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append({"timestamp": datetime.now(UTC).timestamp(), "lines_dropped": dropped})
        if not lines:
            return
        try:
            self._write(b"".join(map(_line, lines)))
        except OSError:  # a full disk, or nobody reads it any more: serving does not depend on the log
            self._dropped += len(lines)


def _line(fields: dict[str, Any]) -> bytes:
    at = fields["timestamp"]
    second = int(at)
    fields["timestamp"] = f"{_second(second)}.{int((at - second) * 1000):03d}+00:00"
    fields["event"], fields["level"] = "request", "info"
    return orjson.dumps(fields) + b"\n"


@functools.lru_cache(maxsize=4)
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _to_stderr(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
