"""Rollout and scheduler put together: what is to be done with every deployment now. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deployments.rollout import Create, Move, Plan, Seen, Stage, Wanted, plan
from deployments.scheduler import Fleet, Placement, Refusal, Request, Shape, place
from wire.engine import RuntimeKind

FAILING = "failing: "
"""Begins the phase reason of an instance that was given up for another server."""
NO_FLEET = Fleet({})


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


def plan_rollouts(subjects: Iterable[Subject], now: float, drain_timeout_s: float) -> list[tuple[Subject, Plan]]:
    """First half: no capacities needed, so an idle pass is cheap."""
    return [
        (one, plan(one.wanted, one.instances, now, failed_on=one.failed_on, drain_timeout_s=drain_timeout_s))
        for one in subjects
    ]


def place_all(planned: Iterable[tuple[Subject, Plan]], fleet: Fleet) -> list[Outcome]:
    """Second half: find a place for every Create, one after the other, so that no memory is promised twice."""
    outcomes = []
    for subject, found in planned:
        outcome, fleet = _place(subject, found, fleet)
        outcomes.append(outcome)
    return outcomes


def _place(subject: Subject, found: Plan, fleet: Fleet) -> tuple[Outcome, Fleet]:
    moves, placements, notes = list(found.moves), [], list(found.notes)
    refusal: Refusal | None = None
    for create in found.creates:
        request = _request(subject, create, placements)
        answer = Refusal({}, subject.problem) if subject.problem else place(request, fleet)
        if isinstance(answer, Refusal) and create.avoid and not create.instead_of:
            answer = _anywhere(request, fleet, answer)
        if isinstance(answer, Refusal):
            if create.instead_of:
                continue  # it goes on trying where it is
            refusal = answer
            break
        placements.append(answer)
        fleet = fleet.reserve(answer)
        if create.instead_of:
            moves.append(Move(create.instead_of, Stage.STOP, _why_instead(create, subject)))
    if refusal is not None:
        moves_more, note = _make_room(subject, found, refusal, fleet)
        moves += moves_more
        notes.insert(0, note)
    outcome = Outcome(
        deployment_id=subject.deployment_id,
        moves=tuple(moves),
        placements=tuple(placements),
        explanation=". ".join(note[:1].upper() + note[1:] for note in notes),
        refusals=dict(refusal.reasons) if refusal else {},
        unplaceable=refusal is not None,
        updating=found.updating,
        halted=found.halted,
    )
    return outcome, fleet


def _anywhere(request: Request, fleet: Fleet, refused: Refusal) -> Placement | Refusal:
    """A server where it failed is better than none at all."""
    if refused.problem:
        return refused
    answer = place(
        Request(
            shapes=request.shapes,
            program=request.program,
            runtime=request.runtime,
            labels=request.labels,
            servers=request.servers,
            occupied=request.occupied,
        ),
        fleet,
    )
    return refused if isinstance(answer, Refusal) else answer


def _make_room(subject: Subject, found: Plan, refusal: Refusal, fleet: Fleet) -> tuple[list[Move], str]:
    """Replace in place when exactly the old instance's resources are what is missing; else say what is."""
    if refusal.problem:
        return [], refusal.problem
    leaving = [one for one in subject.instances if one.stage in (Stage.DRAIN, Stage.STOP)]
    if any(_fits_without(subject, one.id, fleet) for one in leaving):
        return [], "waiting for the room that an instance on its way out still holds"
    if found.victim and _fits_without(subject, found.victim, fleet):
        reason = "replaced in place: there is no room for a second instance beside it"
        return [Move(found.victim, Stage.DRAIN, reason)], "no room for old and new side by side: replacing in place"
    return [], refusal.summary()


def _fits_without(subject: Subject, instance_id: str, fleet: Fleet) -> bool:
    held = subject.reservations.get(instance_id)
    if held is None:
        return False
    freed = fleet.release(held.server_id, held.memory_bytes, held.gpu_indexes, held.gpu_memory_bytes)
    return isinstance(place(_request(subject, Create(avoid={}), []), freed), Placement)


def _request(subject: Subject, create: Create, placements: list[Placement]) -> Request:
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
        avoid=create.avoid,
        occupied=occupied,
    )


def _why_instead(create: Create, subject: Subject) -> str:
    one = next(one for one in subject.instances if one.id == create.instead_of)
    return f"{FAILING}{one.reason or one.state.value}"
