"""A meter of how fast transfers are."""

from __future__ import annotations

_SMOOTHING_S = 3.0


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
