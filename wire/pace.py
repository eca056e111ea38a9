"""A bound on bytes a second, shared by all who move bytes in one direction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_BURST_S = 0.25


class Limit:
    """Token bucket. None: no bound. It may be changed at any time."""

    def __init__(self, bytes_per_second: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._free_at = 0.0
        """When what was taken so far has been paid for."""

    async def take(self, count_bytes: int) -> None:
        """Wait until that many bytes may pass."""
        if not self.bytes_per_second:
            return
        now = self._clock()
        self._free_at = max(self._free_at, now - _BURST_S) + count_bytes / self.bytes_per_second
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
