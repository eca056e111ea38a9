"""Which instance gets a request: least in flight, then prefix affinity; failing ones are left out for a while. Pure.

Affinity is by rendezvous hashing of the prompt's beginning, so that a conversation finds its cached prefix again and a
change of the targets moves as few conversations as possible.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from wire.feed import Target

NEAR = 1
"""Targets with at most this many requests more than the least loaded one count as equal."""
FIRST_EJECTION_S = 0.5
MAX_EJECTION_S = 10.0


@dataclass(slots=True)
class Ejection:
    failures: int
    until: float  # monotonic


class Balancer:
    """In-flight counts and ejections of instances. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self.in_flight: dict[str, int] = {}
        self._ejected: dict[str, Ejection] = {}

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
            healthy = [target for target in open_targets if target.instance_id not in self._ejected]
            open_targets = healthy or open_targets
        least = min(self.in_flight.get(target.instance_id, 0) for target in open_targets)
        near = [t for t in open_targets if self.in_flight.get(t.instance_id, 0) <= least + NEAR]
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
        failures = self._ejected[instance_id].failures + 1 if instance_id in self._ejected else 1
        self._ejected[instance_id] = Ejection(failures, now + _pause(failures))

    def succeeded(self, instance_id: str) -> None:
        if self._ejected:
            self._ejected.pop(instance_id, None)

    def forget(self, known: Collection[str]) -> None:
        """Drop what is kept of instances that are no longer routed to."""
        for instance_id in [name for name in self._ejected if name not in known]:
            del self._ejected[instance_id]


def _pause(failures: int) -> float:
    return min(MAX_EJECTION_S, float(FIRST_EJECTION_S * 2 ** min(failures - 1, 8)))


def _score(prefix: bytes, instance_id: str) -> bytes:
    return blake2b(prefix, digest_size=8, key=instance_id.encode()[:64]).digest()
