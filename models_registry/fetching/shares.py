"""Who gets how much of the line when several imports are fetched at once. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LEFT_TO_OTHERS = 0.1
"""Of the bandwidth, for all that are not first: they go on, slowly."""


@dataclass(frozen=True)
class Contender:
    """An import that a worker fetches now."""

    key: int
    priority: int


@dataclass(frozen=True)
class Share:
    """Of one import. `bytes_per_second` None: no limit."""

    connections: int
    bytes_per_second: float | None


def share_of(key: int, all_of_them: Sequence[Contender], connections: int, bytes_per_second: float | None) -> Share:
    """What import `key` may take of all connections and of the whole rate.

    Those of the highest priority share alike; each of the others keeps one connection, and all of the others a tenth
    of the rate, so that nothing stands still for ever.
    """
    top = max(one.priority for one in all_of_them)
    first = sorted(one.key for one in all_of_them if one.priority == top)
    others = len(all_of_them) - len(first)
    if key not in first:
        rate = None if bytes_per_second is None else bytes_per_second * _LEFT_TO_OTHERS / others
        return Share(1, rate)
    free = max(len(first), connections - others)
    mine = free // len(first) + (first.index(key) < free % len(first))
    if bytes_per_second is None:
        return Share(mine, None)
    return Share(mine, bytes_per_second * (1 - _LEFT_TO_OTHERS if others else 1.0) / len(first))
