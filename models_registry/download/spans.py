"""Which bytes of a file are there: sorted ranges that do not touch. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Span = tuple[int, int]
"""From (included) and to (excluded)."""


class Spans:
    """A set of byte positions."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        for start, end in spans:
            self.add(start, end)

    def __iter__(self) -> Iterator[Span]:
        return zip(self._starts, self._ends, strict=True)

    def add(self, start: int, end: int) -> None:
        """Put a range in; it may overlap or touch what is there."""
        if start >= end:
            return
        starts, ends = self._starts, self._ends
        first = bisect_left(ends, start)  # the first that ends at `start` or behind it
        last = bisect_right(starts, end)  # behind the last that starts at `end` or before it
        if first < last:
            start, end = min(start, starts[first]), max(end, ends[last - 1])
        self.total += end - start - sum(ends[at] - starts[at] for at in range(first, last))
        starts[first:last] = [start]
        ends[first:last] = [end]

    @property
    def prefix_end(self) -> int:
        """Everything before it is there."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def missing(self, size: int) -> Iterator[Span]:
        """What of the first `size` bytes is not there, in order."""
        at = 0
        for start, end in self:
            if start >= size:
                break
            if at < start:
                yield at, start
            at = end
        if at < size:
            yield at, size


def pieces(spans: Iterable[Span], piece_bytes: int) -> Iterator[Span]:
    """The same bytes in ranges of `piece_bytes` at most, in order."""
    for start, end in spans:
        while start < end:
            cut = min(end, start + piece_bytes)
            yield start, cut
            start = cut
