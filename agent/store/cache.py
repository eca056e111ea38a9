"""What may go from a server's cache, and what first. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A version that is here. `used_at` is Unix time; `bound`: in use, held, or being fetched."""

    digest: str
    model_name: str
    used_at: float
    blobs: frozenset[str]
    bound: bool


def surplus(kept: Iterable[Kept], keep_versions: int | None) -> list[str]:
    """Digests of versions that are more than `keep_versions` of their model: the longest unused ones.

    Those in use count, and stay.
    """
    if keep_versions is None:
        return []
    by_model: dict[str, list[Kept]] = defaultdict(list)
    for one in kept:
        if one.model_name:
            by_model[model_of(one.model_name)].append(one)
    gone = []
    for versions in by_model.values():
        ranked = sorted(versions, key=lambda one: (not one.bound, -one.used_at))
        gone += [one.digest for one in ranked[keep_versions:] if not one.bound]
    return gone


def to_evict(kept: Sequence[Kept], sizes: Mapping[str, int], excess_bytes: int, going: Iterable[str] = ()) -> list[str]:
    """Digests to remove so that `excess_bytes` become free, or as much as can: the longest unused first.

    A blob is free only when nobody that stays has it. Versions of `going` go in any case. `sizes`: of all blobs here.
    """
    gone = set(going)
    staying = [one for one in kept if one.digest not in gone]
    freed = _free_without(staying, sizes)
    for one in sorted(staying, key=lambda one: one.used_at):
        if freed >= excess_bytes:
            break
        if one.bound:
            continue
        gone.add(one.digest)
        staying = [other for other in staying if other.digest != one.digest]
        freed = _free_without(staying, sizes)
    return [one.digest for one in kept if one.digest in gone]


def model_of(model_name: str) -> str:
    """`name` of `name:version`."""
    return model_name.rpartition(":")[0] or model_name


def _free_without(staying: Iterable[Kept], sizes: Mapping[str, int]) -> int:
    needed = {sha256 for one in staying for sha256 in one.blobs}
    return sum(size for sha256, size in sizes.items() if sha256 not in needed)
