"""Histograms of latencies: counts by `wire.feed.LATENCY_BOUNDS_MS`, and one more for what is longer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wire.feed import LATENCY_BOUNDS_MS

BUCKETS = len(LATENCY_BOUNDS_MS) + 1
_LARGEST_COUNT = 10**15


def added(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Both together; an empty one says nothing."""
    if not one or not other:
        return list(one or other)
    return [first + second for first, second in zip(one, other, strict=True)]


def summed(histograms: Iterable[Sequence[int]]) -> list[int]:
    """All together; empty when none says anything."""
    total: list[int] = []
    for histogram in histograms:
        total = added(total, histogram)
    return total


def accepted(told: Sequence[int]) -> list[int]:
    """What a gateway told, if it is a histogram of this release; else empty."""
    if len(told) != BUCKETS or not all(0 <= count <= _LARGEST_COUNT for count in told):
        return []
    return list(told)


def percentile(counts: Sequence[int], share: float) -> int | None:
    """Milliseconds that `share` (0 to 1) of the requests took at most; None when nothing is known.

    Within a bucket requests are taken as spread evenly (as Prometheus' histogram_quantile does); what is longer than
    the last bound counts as that bound.
    """
    total = sum(counts)
    if not total:
        return None
    rank, before = share * total, 0
    for index, count in enumerate(counts):
        if count and before + count >= rank:
            if index == len(LATENCY_BOUNDS_MS):
                break
            lower = LATENCY_BOUNDS_MS[index - 1] if index else 0
            return round(lower + (LATENCY_BOUNDS_MS[index] - lower) * (rank - before) / count)
        before += count
    return LATENCY_BOUNDS_MS[-1]
