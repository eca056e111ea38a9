"""Which piece to ask a source for next: rarest first. Pure.

A piece that few others have, or are getting, comes first, so that soon everything is somewhere in the fleet and the
master's one link is not what all wait for. Ties are broken by chance, or all servers would ask for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import NamedTuple


class Key(NamedTuple):
    """A piece of a blob, by its number."""

    sha256: str
    piece: int


def choose(
    available: Iterable[Key],
    asked: Mapping[Key, int],
    late: Set[Key],
    copies: Callable[[Key], int],
    chance: Callable[[], float],
) -> Key | None:
    """The next piece to ask a source for; None: nothing now.

    `available`: pieces that are not here and that the source has. `asked`: how many sources are being asked for each.
    `late`: of these, those that a second source may be asked for, when there is nothing else to do. `copies`: how
    many others have one or are getting it. `chance`: uniform in [0, 1).
    """
    best: Key | None = None
    best_rank: tuple[int, float] = (0, 0.0)
    fallback: Key | None = None
    for key in available:
        if key in asked:
            if fallback is None and key in late and asked[key] == 1:
                fallback = key
            continue
        rank = (copies(key), chance())
        if best is None or rank < best_rank:
            best, best_rank = key, rank
    return best if best is not None else fallback
