"""Where a request goes: from a public name to routes with instances, and from these to one instance. Pure.

`resolve` follows aliases, weighted splits and fallbacks. `Balancer` chooses among instances: least in flight, then
prefix affinity by rendezvous hashing of the prompt's beginning, so that a conversation finds its cached prefix again
and a change of the targets moves as few conversations as possible. Failing ones are left out for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from wire.feed import FeedRoute, Split, Target

NEAR = 1
"""Targets with at most this many requests more than the least loaded one count as equal."""
FIRST_EJECTION_S = 0.5
MAX_EJECTION_S = 10.0
ERRORS_IN_A_ROW = 5
"""Answers with status 500 and above, one after the other, that make an instance an outlier."""
_MAX_DEPTH = 8

FindRoute = Callable[[str], FeedRoute | None]


# ------------------------------------------------------------------------------------------------ routes


def resolve(find_route: FindRoute, name: str, draw: float, session: bytes = b"") -> list[FeedRoute]:
    """Routes with instances or a provider, in the order in which to try them; each at most once.

    First the share that `draw` (from [0, 1)) falls into, or that the session belongs to, then the other shares by
    weight, then the fallbacks. What has nothing ready comes last of its kind. Empty for an unknown name.
    """
    leaves: dict[str, FeedRoute] = {}
    for leaf in _leaves(find_route, name, draw, session, frozenset()):
        leaves.setdefault(leaf.id, leaf)
    return list(leaves.values())


def _leaves(
    find_route: FindRoute, name: str, draw: float, session: bytes, above: frozenset[str]
) -> Iterator[FeedRoute]:
    route = find_route(name)
    if route is None or name in above or len(above) >= _MAX_DEPTH:
        return
    above = above | {name}
    if route.targets or route.provider is not None or not route.splits:
        own = [route]
    else:
        own = []
        for split in _in_turn(route.splits, draw, session, route.id):
            own += _leaves(find_route, split.route, draw, session, above)
    yield from (leaf for leaf in own if is_ready(leaf))
    for fallback in route.fallbacks:
        yield from _leaves(find_route, fallback, draw, session, above)
    yield from (leaf for leaf in own if not is_ready(leaf))


def is_ready(route: FeedRoute) -> bool:
    """Something of its own can take a request."""
    return bool(route.targets) or route.provider is not None


def _in_turn(splits: Sequence[Split], draw: float, session: bytes, salt: str) -> list[Split]:
    """The share drawn, then the others, the heaviest first; a share of weight 0 gets nothing, not even what is left."""
    open_splits = [split for split in splits if split.weight > 0]
    if len(open_splits) < 2:
        return open_splits
    if session:  # the same session stays with the same share
        digest = blake2b(session, digest_size=8, key=salt.encode()[:64]).digest()
        draw = int.from_bytes(digest, "big") / 2**64
    point = draw * sum(split.weight for split in open_splits)
    drawn = open_splits[-1]
    for split in open_splits:
        point -= split.weight
        if point < 0:
            drawn = split
            break
    rest = [split for split in open_splits if split is not drawn]
    return [drawn, *sorted(rest, key=lambda split: -split.weight)]


# ------------------------------------------------------------------------------------------------ instances


@dataclass(slots=True)
class Ejection:
    failures: int
    until: float  # monotonic
    answers: bool
    """It answers, if with errors: a last resort is better than nothing."""


class Balancer:
    """In-flight counts and ejections of instances. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self.in_flight: dict[str, int] = {}
        self._ejected: dict[str, Ejection] = {}
        self._errors: dict[str, int] = {}

    def choose(
        self, targets: Sequence[Target], prefix: bytes, now: float, tried: Collection[str] = ()
    ) -> Target | None:
        """A target not in `tried`; an ejected one only when there is no other, or it is due for a probe.

        Choosing an ejected target that is due pushes its due time on, so that one request probes it, not all.
        """
        if len(targets) == 1:
            return None if targets[0].instance_id in tried else targets[0]
        open_targets = [target for target in targets if target.instance_id not in tried]
        if not open_targets:
            return None
        if self._ejected:
            due = [t for t in open_targets if (e := self._ejected.get(t.instance_id)) and e.until <= now]
            if due:
                ejection = self._ejected[due[0].instance_id]
                ejection.until = now + _pause(ejection.failures)
                return due[0]
            open_targets = self._healthy(open_targets) or open_targets
        in_flight = self.in_flight
        least = min(in_flight.get(target.instance_id, 0) for target in open_targets)
        near = [t for t in open_targets if _has_room(t, in_flight.get(t.instance_id, 0), least)]
        if not prefix:
            return min(near, key=lambda target: in_flight.get(target.instance_id, 0))
        return max(near, key=lambda target: _score(prefix, target.instance_id))

    def started(self, instance_id: str) -> None:
        self.in_flight[instance_id] = self.in_flight.get(instance_id, 0) + 1

    def finished(self, instance_id: str) -> None:
        left = self.in_flight.get(instance_id, 0) - 1
        if left > 0:
            self.in_flight[instance_id] = left
        else:
            self.in_flight.pop(instance_id, None)

    def failed(self, instance_id: str, now: float) -> None:
        """It could not be reached, or has no model: leave it out, longer each time."""
        self._eject(instance_id, now, answers=False)

    def erred(self, instance_id: str, now: float) -> None:
        """It answered with a fault of its own; after some in a row it is left out."""
        errors = self._errors[instance_id] = self._errors.get(instance_id, 0) + 1
        if errors >= ERRORS_IN_A_ROW:
            self._eject(instance_id, now, answers=True)

    def succeeded(self, instance_id: str) -> None:
        if self._ejected:
            self._ejected.pop(instance_id, None)
        if self._errors:
            self._errors.pop(instance_id, None)

    def forget(self, known: Collection[str]) -> None:
        """Drop what is kept of instances that are no longer routed to."""
        kept: dict[str, Any]
        for kept in (self._ejected, self._errors):
            for instance_id in [name for name in kept if name not in known]:
                del kept[instance_id]

    def _eject(self, instance_id: str, now: float, *, answers: bool) -> None:
        failures = self._ejected[instance_id].failures + 1 if instance_id in self._ejected else 1
        self._ejected[instance_id] = Ejection(failures, now + _pause(failures), answers)

    def _healthy(self, targets: list[Target]) -> list[Target]:
        """Targets that are not ejected. Of those that err but answer, so many stay out that half of all are left: a
        fault of all of them (a bad prompt, for one) must not send everything to the last one."""
        healthy = [target for target in targets if target.instance_id not in self._ejected]
        wanted = (len(targets) + 1) // 2
        if len(healthy) >= wanted:
            return healthy
        erring = [t for t in targets if (e := self._ejected.get(t.instance_id)) is not None and e.answers]
        erring.sort(key=lambda target: self._ejected[target.instance_id].failures)
        return healthy + erring[: wanted - len(healthy)]


class RetryBudget:
    """Bounds tries beyond the first to a share of all requests, so that a fleet in trouble is not asked twice as much.

    A token bucket (as Finagle's): each request brings `SHARE` of a token, a further try takes one; `FLOOR_PER_S` come
    by themselves. Time is monotonic seconds.
    """

    SHARE = 0.2
    FLOOR_PER_S = 2.0
    MOST = 50.0

    def __init__(self) -> None:
        self._tokens = self.MOST / 2
        self._at = 0.0

    def request(self) -> None:
        """A request came."""
        self._tokens = min(self.MOST, self._tokens + self.SHARE)

    def may_retry(self, now: float) -> bool:
        """Take a token, if there is one."""
        if self._at:
            self._tokens = min(self.MOST, self._tokens + (now - self._at) * self.FLOOR_PER_S)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _has_room(target: Target, in_flight: int, least: int) -> bool:
    """It may keep its conversations: it is about as loaded as the least loaded one, or has a slot free."""
    return in_flight <= least + NEAR or (target.slots is not None and in_flight < target.slots)


def _pause(failures: int) -> float:
    return min(MAX_EJECTION_S, float(FIRST_EJECTION_S * 2 ** min(failures - 1, 8)))


def _score(prefix: bytes, instance_id: str) -> bytes:
    return blake2b(prefix, digest_size=8, key=instance_id.encode()[:64]).digest()
