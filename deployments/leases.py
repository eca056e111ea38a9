"""Which servers are lost, which are given up, and when too many vanish at once to believe it. Pure.

A server is lost when its lease ran out, and its instances are placed elsewhere when it stays lost. When many vanish
within one window, or none is heard of at all, the fault is most likely on the master's side: then nothing is evicted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Limits:
    lease_s: float
    evict_after_s: float
    window_s: float
    share: float


@dataclass(frozen=True)
class Heard:
    """A server that has connected at least once and is not revoked. Unix times; `lost_since` None: not lost."""

    server_id: str
    last_seen: float
    lost_since: float | None = None


@dataclass(frozen=True)
class Memory:
    """What one leader keeps between its passes."""

    judging_from: float  # agents get a whole lease from here to make themselves heard
    calm_since: float  # no eviction counts time before this
    vanished: frozenset[str] = frozenset()  # servers of the mass loss going on; empty: none
    silent: bool = False


@dataclass(frozen=True)
class Judgement:
    newly_lost: tuple[str, ...]
    found: tuple[str, ...]
    evicted: frozenset[str]
    memory: Memory
    mass_loss_began: bool = False
    mass_loss_ended: bool = False

    @property
    def braking(self) -> bool:
        return bool(self.memory.vanished) or self.memory.silent


def start(now: float, open_loss: Iterable[str] = ()) -> Memory:
    """For a new leader. `open_loss`: servers still lost from a mass loss that its predecessor announced."""
    return Memory(judging_from=now, calm_since=now, vanished=frozenset(open_loss))


def judge(heard: Iterable[Heard], memory: Memory, now: float, limits: Limits) -> Judgement:
    """Judge every server once. Call it each pass with the memory that the pass before returned."""
    servers = list(heard)
    fresh = {one.server_id for one in servers if now - one.last_seen <= limits.lease_s}
    found = tuple(one.server_id for one in servers if one.lost_since is not None and one.server_id in fresh)
    newly_lost = tuple(
        one.server_id
        for one in servers
        if one.lost_since is None and now - max(one.last_seen, memory.judging_from) > limits.lease_s
    )
    lost_since = {one.server_id: one.lost_since for one in servers if one.lost_since is not None}
    lost_since = {key: since for key, since in lost_since.items() if key not in fresh} | dict.fromkeys(newly_lost, now)
    alive = len(servers) - len(lost_since)

    vanished = _vanished(lost_since, memory, alive, now, limits)
    silent = bool(servers) and not fresh
    braking, was_braking = bool(vanished) or silent, bool(memory.vanished) or memory.silent
    calm_since = now if was_braking and not braking else memory.calm_since
    memory_next = replace(memory, vanished=vanished, silent=silent, calm_since=calm_since)
    evicted = frozenset(key for key, since in lost_since.items() if now - max(since, calm_since) > limits.evict_after_s)
    return Judgement(
        newly_lost=newly_lost,
        found=found,
        evicted=frozenset() if braking else evicted,
        memory=memory_next,
        mass_loss_began=bool(vanished) and not memory.vanished,
        mass_loss_ended=bool(memory.vanished) and not vanished,
    )


def _vanished(lost_since: dict[str, float], memory: Memory, alive: int, now: float, limits: Limits) -> frozenset[str]:
    """Servers of a mass loss; it lasts until few enough of them are missing (back, or revoked by a person)."""
    recently = {key for key, since in lost_since.items() if now - since <= limits.window_s}
    if memory.vanished:
        recently |= memory.vanished & lost_since.keys()
    too_many = len(recently) >= 2 and len(recently) / (alive + len(recently)) > limits.share
    return frozenset(recently) if too_many else frozenset()
