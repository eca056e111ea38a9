"""A limit of bytes a second that many transfers share, and a meter of how fast they are."""

from __future__ import annotations

import asyncio
import time

_BURST_S = 0.25
_SMOOTHING_S = 3.0


class Limit:
    """A token bucket; `bytes_per_second` may be changed at any time, None is no limit."""

    def __init__(self, bytes_per_second: float | None = None) -> None:
        self.bytes_per_second = bytes_per_second
        self._free_at = 0.0  # monotonic; when all that was taken has been paid for

    async def take(self, count: int) -> None:
        """Wait until `count` bytes more may pass."""
        rate = self.bytes_per_second
        if not rate:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - _BURST_S) + count / rate
        if (wait_s := self._free_at - now) > 0:
            await asyncio.sleep(wait_s)


class Meter:
    """Bytes a second, smoothed over some seconds."""

    def __init__(self, now: float) -> None:
        self.rate = 0.0
        self._at = now
        self._bytes = 0

    def add(self, count: int) -> None:
        self._bytes += count

    def tick(self, now: float) -> float:
        """The rate, with what came since the last call."""
        elapsed_s = now - self._at
        if elapsed_s > 0:
            weight = min(1.0, elapsed_s / _SMOOTHING_S) if self.rate else 1.0
            self.rate += (self._bytes / elapsed_s - self.rate) * weight
            self._at, self._bytes = now, 0
        return self.rate
