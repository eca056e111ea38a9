"""Rollout and scheduler put together: what is to be done with every deployment now. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deployments.rollout import Create, Move, Plan, Seen, Stage, Wanted, plan
from deployments.scheduler import Fleet, Placed, Placement, Refusal, Request, Shape, place, place_many
from wire.engine import RuntimeKind

FAILING = "failing: "
"""Begins the phase reason of an instance that was given up for another server."""
NO_FLEET = Fleet({})
PLACEMENTS_A_PASS = 100  # so that a pass ends well within the leader's lease


@dataclass(frozen=True)
class Reservation:
    server_id: str
    memory_bytes: int
    gpu_indexes: tuple[int, ...]
    gpu_memory_bytes: int


@dataclass(frozen=True)
class Subject:
    """One deployment with all that is known of it."""

    deployment_id: int
    wanted: Wanted
    instances: tuple[Seen, ...]
    reservations: Mapping[str, Reservation]  # by instance id
    shapes: tuple[Shape, ...]
    program: str
    problem: str = ""  # why it cannot be placed anywhere, whatever is free
    runtime: RuntimeKind = RuntimeKind.AUTO
    labels: Mapping[str, str] = field(default_factory=dict)
    servers: frozenset[str] = frozenset()
    failed_on: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""  # of the model version that is wanted


@dataclass(frozen=True)
class Holding:
    """How much of a model version is on a server."""

    whole: bool
    problem: str = ""  # why it does not come


Holdings = Mapping[str, Mapping[str, Holding]]
"""Server -> digest -> holding. A server that does not tell is not in it."""


@dataclass(frozen=True)
class Outcome:
    """What to do with one deployment. `explanation` and `refusals` say why it is not where it should be."""

    deployment_id: int
    moves: tuple[Move, ...]
    placements: tuple[Placement, ...]
    explanation: str
    refusals: Mapping[str, str]
    unplaceable: bool
    updating: bool
    halted: bool
    ahead: frozenset[str] = frozenset()  # servers that should have the model version before an instance is there


def plan_rollouts(subjects: Iterable[Subject], now: float, drain_timeout_s: float) -> list[tuple[Subject, Plan]]:
    """First half: no capacities needed, so an idle pass is cheap."""
    return [
        (one, plan(one.wanted, one.instances, now, failed_on=one.failed_on, drain_timeout_s=drain_timeout_s))
        for one in subjects
    ]


def place_all(
    planned: Iterable[tuple[Subject, Plan]],
    fleet: Fleet,
    limit: int = PLACEMENTS_A_PASS,
    holdings: Holdings | None = None,
) -> list[Outcome]:
    """Second half: find a place for every Create, one after the other, so that no memory is promised twice.

    At most `limit` instances in all; the rest is for the next pass. By `holdings` an instance that has to be stopped
    before its successor can start is stopped only when the successor's model is there.
    """
    outcomes = []
    for subject, found in planned:
        outcome, fleet = _place(subject, found, fleet, limit, holdings or {})
        limit -= len(outcome.placements)
        outcomes.append(outcome)
    return outcomes


def _place(subject: Subject, found: Plan, fleet: Fleet, limit: int, holdings: Holdings) -> tuple[Outcome, Fleet]:
    moves, notes = list(found.moves), list(found.notes)
    further = [create for create in found.creates if not create.instead_of][:limit]
    placed = _further(subject, further, fleet)
    placements, fleet, refusal = list(placed.placements), placed.fleet, placed.refusal
    for create in found.creates if refusal is None else ():
        if not create.instead_of or len(placements) >= limit:
            continue
        instead = place_many(_request(subject, create.avoid, placements), 1, fleet)
        if instead.refusal is None:  # else it goes on trying where it is
            placements += instead.placements
            fleet = instead.fleet
            moves.append(Move(create.instead_of, Stage.STOP, _why_instead(create, subject)))
    room = Room()
    if refusal is not None:
        room = _make_room(subject, found, refusal, fleet, holdings)
        moves += room.moves
        notes.insert(0, room.note)
    short = refusal if not room.on_its_way else None
    outcome = Outcome(
        deployment_id=subject.deployment_id,
        moves=tuple(moves),
        placements=tuple(placements),
        explanation=". ".join(note[:1].upper() + note[1:] for note in notes),
        refusals=dict(short.reasons) if short else {},
        unplaceable=short is not None,
        updating=found.updating,
        halted=found.halted,
        ahead=room.ahead,
    )
    return outcome, fleet


def _further(subject: Subject, creates: list[Create], fleet: Fleet) -> Placed:
    """Places for additional instances, first where it has not failed; a server where it has is better than none."""
    if not creates:
        return Placed((), fleet)
    if subject.problem:
        return Placed((), fleet, Refusal({}, subject.problem))
    avoid = creates[0].avoid
    placed = place_many(_request(subject, avoid, ()), len(creates), fleet)
    missing = len(creates) - len(placed.placements)
    if not (missing and avoid):
        return placed
    more = place_many(_request(subject, {}, placed.placements), missing, placed.fleet)
    return Placed(placed.placements + more.placements, more.fleet, placed.refusal if more.refusal else None)


@dataclass(frozen=True)
class Room:
    """What is done about a refusal. `on_its_way`: room will be there, so that it is none."""

    moves: tuple[Move, ...] = ()
    note: str = ""
    on_its_way: bool = False
    ahead: frozenset[str] = frozenset()


def _make_room(subject: Subject, found: Plan, refusal: Refusal, fleet: Fleet, holdings: Holdings) -> Room:
    """Replace in place when exactly the old instance's resources are what is missing; else say what is."""
    if refusal.problem:
        return Room(note=refusal.problem)
    going = {move.instance_id for move in found.moves}
    leaving = [one.id for one in subject.instances if one.stage in (Stage.DRAIN, Stage.STOP) or one.id in going]
    for instance_id in leaving:
        if server_id := _place_without(subject, instance_id, fleet):
            note = "waiting for the room that an instance on its way out still holds"
            return Room(note=note, on_its_way=True, ahead=frozenset({server_id}))
    server_id = _place_without(subject, found.victim, fleet) if found.victim else ""
    if not server_id:
        return Room(note=refusal.summary())
    return _replace_in_place(subject, found.victim, server_id, holdings.get(server_id))


def _replace_in_place(subject: Subject, victim: str, server_id: str, holding: Mapping[str, Holding] | None) -> Room:
    """Drain the old instance, once the model of the new one is on the server: it serves until then."""
    note = "no room for old and new side by side: replacing in place"
    here = (holding or {}).get(subject.digest, Holding(whole=False))
    if holding is not None and not here.whole and not here.problem:
        return Room(note=f"{note}, as soon as the model is there", on_its_way=True, ahead=frozenset({server_id}))
    reason = "replaced in place: there is no room for a second instance beside it"
    if here.problem:
        note += f"; its model could not be fetched ahead ({here.problem})"
    return Room((Move(victim, Stage.DRAIN, reason),), note, True, frozenset({server_id}))


def _place_without(subject: Subject, instance_id: str, fleet: Fleet) -> str:
    """Server on which a new instance fits once that one is gone; empty: on none."""
    held = subject.reservations.get(instance_id)
    if held is None:
        return ""
    freed = fleet.release(held.server_id, held.memory_bytes, held.gpu_indexes, held.gpu_memory_bytes)
    found = place(_request(subject, {}, ()), freed)
    return found.server_id if isinstance(found, Placement) else ""


def _request(subject: Subject, avoid: Mapping[str, str], placements: Iterable[Placement]) -> Request:
    occupied: dict[str, int] = {}
    for one in subject.instances:
        if one.stage is Stage.RUN:
            occupied[one.server_id] = occupied.get(one.server_id, 0) + 1
    for placed in placements:
        occupied[placed.server_id] = occupied.get(placed.server_id, 0) + 1
    return Request(
        shapes=subject.shapes,
        program=subject.program,
        runtime=subject.runtime,
        labels=subject.labels,
        servers=subject.servers,
        avoid=avoid,
        occupied=occupied,
    )


def _why_instead(create: Create, subject: Subject) -> str:
    one = next(one for one in subject.instances if one.id == create.instead_of)
    return f"{FAILING}{one.reason or one.state.value}"
