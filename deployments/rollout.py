"""What to do next with the instances of one deployment. Pure, idempotent, level-triggered.

An instance goes RUN -> DRAIN (out of the route, still running) -> STOP (out of the desired state) -> ENDED. At most one
instance more than wanted runs at a time (surge 1), and one that serves is drained only while enough others serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from wire.messages import InstanceState

BROKEN_EXITS = 3  # this many deaths lately, and not ready: it will not come up here
DRAIN_SETTLE_S = 2.0  # until the gateways' own reports are newer than the change of route


class Stage(StrEnum):
    """Mirror of `models.Phase`, without Django."""

    RUN = "run"
    DRAIN = "drain"
    STOP = "stop"
    ENDED = "ended"


class Host(StrEnum):
    """How the server of an instance is."""

    SOUND = "sound"
    DRAINING = "draining"
    LOST = "lost"  # not heard of; its engines may well serve
    EVICTED = "evicted"  # lost for so long that its instances are placed elsewhere
    REVOKED = "revoked"  # or removed: it will not come back


@dataclass(frozen=True)
class Wanted:
    """`replicas` is 0 for a stopped or deleted deployment."""

    replicas: int
    revision: int


@dataclass(frozen=True)
class Seen:
    """One instance that has not ended."""

    id: str
    revision: int
    server_id: str
    server_name: str
    stage: Stage
    stage_since: float  # Unix time, as all here
    created_at: float
    state: InstanceState = InstanceState.PENDING
    host: Host = Host.SOUND
    reason: str = ""
    recent_exits: int = 0
    gone: bool = False  # the agent reports, for a state without it, that it is no more
    routable: bool = False  # a live gateway may still send requests to it
    in_flight: int = 0

    @property
    def ready(self) -> bool:
        return self.state is InstanceState.READY and self.host in (Host.SOUND, Host.DRAINING)

    @property
    def broken(self) -> bool:
        """It will not come up where it is."""
        if self.state is InstanceState.FAILED:
            return True
        waiting = self.state in (InstanceState.BACKOFF, InstanceState.STARTING, InstanceState.PENDING)
        return waiting and self.recent_exits >= BROKEN_EXITS


@dataclass(frozen=True)
class Move:
    instance_id: str
    to: Stage
    reason: str


@dataclass(frozen=True)
class Create:
    """An instance of the wanted revision to be placed. `instead_of`: a broken one that stops when a place is found."""

    avoid: Mapping[str, str]
    instead_of: str = ""


@dataclass(frozen=True)
class Plan:
    moves: tuple[Move, ...] = ()
    creates: tuple[Create, ...] = ()
    notes: tuple[str, ...] = ()  # why it is not where it should be
    updating: bool = False
    halted: bool = False
    victim: str = ""  # may give way when a Create finds no room: an old one, while nothing else is on its way


def plan(
    wanted: Wanted,
    seen: Iterable[Seen],
    now: float,
    *,
    failed_on: Mapping[str, str] | None = None,
    drain_timeout_s: float = 600.0,
) -> Plan:
    """Next steps towards `wanted`. `failed_on`: servers where this revision kept failing lately, with why."""
    instances = sorted(seen, key=lambda one: (one.created_at, one.id))
    moves = [move for one in instances if (move := _ending(one, now, drain_timeout_s))]
    runs = [one for one in instances if one.stage is Stage.RUN and one.host is not Host.REVOKED]
    if wanted.replicas == 0:
        return Plan(moves=tuple(moves + [_release(one, "not wanted any more") for one in runs]))

    away = [one for one in runs if one.host is Host.EVICTED]
    here = [one for one in runs if one.host is not Host.EVICTED]
    current = [one for one in here if one.revision == wanted.revision and one.host is not Host.DRAINING]
    others = [one for one in here if one not in current]
    broken = [one for one in current if one.broken and one.host is Host.SOUND]
    updating = any(one.revision != wanted.revision for one in others)
    halted = updating and bool(broken)

    released = _release_away(away, here)
    if not halted:
        released += _release_others(wanted, current, others)
    released += _release_surplus(wanted, current)
    going = {move.instance_id for move in released}
    staying = [one for one in others if one.id not in going]
    missing = wanted.replicas - len(current)
    room = missing - len(staying) + (1 if staying else 0)
    creates = [Create(avoid=failed_on or {})] * (0 if halted else max(0, min(missing, room)))
    if not updating:
        creates += [_instead_of(one, broken, failed_on or {}) for one in broken if one.id not in going]
    return Plan(
        moves=tuple(moves + released),
        creates=tuple(creates),
        notes=tuple(_notes(away, others, broken, going, halted)),
        updating=updating,
        halted=halted,
        victim=_victim(instances, current, staying, wanted),
    )


def _ending(one: Seen, now: float, drain_timeout_s: float) -> Move | None:
    """The step of an instance that is on its way out, or whose server is."""
    if one.host is Host.REVOKED:
        return Move(one.id, Stage.ENDED, f"{one.server_name} was revoked or removed")
    if one.stage is Stage.STOP:
        if one.gone:
            return Move(one.id, Stage.ENDED, "")
        if one.host in (Host.LOST, Host.EVICTED):
            return Move(one.id, Stage.ENDED, f"{one.server_name} is lost; it is stopped there when it is back")
        return None
    if one.stage is not Stage.DRAIN:
        return None
    age_s = now - one.stage_since
    if age_s >= drain_timeout_s:
        return Move(one.id, Stage.STOP, f"{one.in_flight} requests were still running after {drain_timeout_s:.0f} s")
    if age_s >= DRAIN_SETTLE_S and not one.routable and one.in_flight == 0:
        return Move(one.id, Stage.STOP, "")
    return None


def _release(one: Seen, reason: str) -> Move:
    """Out of the way: by draining when it may have requests, else at once."""
    may_serve = one.state in (InstanceState.READY, InstanceState.UNHEALTHY) or one.routable or one.in_flight > 0
    return Move(one.id, Stage.DRAIN if may_serve else Stage.STOP, reason)


def _release_away(away: list[Seen], here: list[Seen]) -> list[Move]:
    """Instances on servers given up go as soon as anything else serves; until then a gateway may still reach them."""
    if not any(one.ready for one in here):
        return []
    return [_release(one, f"{one.server_name} is lost") for one in away]


def _release_others(wanted: Wanted, current: list[Seen], others: list[Seen]) -> list[Move]:
    """Old ones and those on draining servers, as far as enough others serve. Lost ones are left: nobody knows."""
    serving = sum(one.ready for one in current + others)
    replaced = len(current) >= wanted.replicas
    moves = []
    for one in sorted(others, key=lambda one: (one.host is not Host.DRAINING, one.in_flight, -one.created_at)):
        old = one.revision != wanted.revision
        reason = "replaced by a newer revision" if old else f"{one.server_name} is being drained"
        if one.host is Host.LOST:
            continue
        if one.ready:
            if serving - 1 < wanted.replicas:
                continue
            serving -= 1
        elif not old and not replaced:
            continue
        moves.append(_release(one, reason))
    return moves


def _release_surplus(wanted: Wanted, current: list[Seen]) -> list[Move]:
    """More than wanted: broken and unready ones first, then the least loaded, then the newest."""
    surplus = len(current) - wanted.replicas
    if surplus <= 0:
        return []
    ranked = sorted(current, key=lambda one: (not one.broken, one.ready, one.in_flight, -one.created_at, one.id))
    return [_release(one, "scaled down") for one in ranked[:surplus]]


def _instead_of(one: Seen, broken: list[Seen], failed_on: Mapping[str, str]) -> Create:
    avoid = {other.server_id: _failing(other) for other in broken} | dict(failed_on)
    return Create(avoid={**avoid, one.server_id: _failing(one)}, instead_of=one.id)


def _failing(one: Seen) -> str:
    return f"kept failing there: {one.reason or one.state.value}"


def _victim(instances: list[Seen], current: list[Seen], staying: list[Seen], wanted: Wanted) -> str:
    """The old instance that may be drained first to make room, one at a time."""
    leaving = any(one.stage in (Stage.DRAIN, Stage.STOP) for one in instances)
    if leaving or any(not one.ready for one in current):
        return ""
    old = [one for one in staying if one.revision != wanted.revision and one.host is Host.SOUND]
    return min(old, key=lambda one: (one.ready, one.in_flight, -one.created_at), default=None).id if old else ""


def _notes(away: list[Seen], others: list[Seen], broken: list[Seen], going: set[str], halted: bool) -> Iterable[str]:
    if halted:
        first = broken[0]
        yield (
            f"the rollout is halted: its new instance on {first.server_name} keeps failing "
            f"({first.reason or first.state.value}); the older revision keeps serving"
        )
    elif broken:
        yield "; ".join(f"keeps failing on {one.server_name}: {one.reason or one.state.value}" for one in broken[:3])
    for name in sorted({one.server_name for one in away if one.id not in going}):
        yield f"{name} is lost, nothing else serves yet"
    for name in sorted({one.server_name for one in others if one.host is Host.DRAINING and one.id not in going}):
        yield f"{name} is being drained, it stays there until another serves"
