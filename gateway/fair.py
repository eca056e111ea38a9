"""Who is next when all engines of a route are full: a weighted fair queue by project, bounded in length and in time.

`Line` is the pure part: start-time fair queueing (Goyal, Vin, Cheng 1996) with every request of the same size. Each
project has a tag that grows by 1/weight with each turn; the lowest tag is next. So a project of weight 4 gets four
turns where one of weight 1 gets one, whoever came first and however many wait. `Turns` wakes those who wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.errors import GatewayError

_LONGEST_RETRY_S = 30.0
_SMOOTHING = 0.1


class Share(NamedTuple):
    """For whom a request is."""

    project_id: str = ""
    weight: int = 1


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that waits."""

    share: Share
    turn: asyncio.Future[bool]
    """True: its turn has come. False: it has been pushed out."""


@dataclass(slots=True)
class _Queue:
    """Of one project; in the order in which they came."""

    start: float
    tickets: dict[Ticket, None] = field(default_factory=dict)
    weight: int = 1


class LineFull(Exception):
    """No room for one more of this project."""


class Line:
    """Those who wait for one route. A project without waiting requests is forgotten with the last that waits."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._queues: dict[str, _Queue] = {}
        self._clock = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, ticket: Ticket) -> Ticket | None:
        """Queue it. In a full line the project with the most waiting (by weight) loses its last: that one is returned.

        Raises LineFull when that would be this project itself.
        """
        project_id, weight = ticket.share.project_id, max(1, ticket.share.weight)
        out = None
        if self._length >= self._longest:
            mine = self._queues.get(project_id)
            greedy = max(self._queues.values(), key=_greed, default=None)
            after = ((len(mine.tickets) if mine else 0) + 1) / weight
            if greedy is None or greedy is mine or _greed(greedy) <= after:
                raise LineFull
            out = next(reversed(greedy.tickets))
            self.discard(out)
        queue = self._queues.get(project_id)
        if queue is None:
            queue = self._queues[project_id] = _Queue(self._clock)
        elif not queue.tickets:  # it did not wait meanwhile: no credit for that
            queue.start = max(queue.start, self._clock)
        queue.weight = weight
        queue.tickets[ticket] = None
        self._length += 1
        return out

    def pop(self) -> Ticket | None:
        """The next; None when nobody waits."""
        waiting = [queue for queue in self._queues.values() if queue.tickets]
        if not waiting:
            return None
        queue = min(waiting, key=lambda queue: (queue.start, -queue.weight))
        ticket = next(iter(queue.tickets))
        del queue.tickets[ticket]
        self._clock = max(self._clock, queue.start)
        queue.start += 1 / queue.weight
        self._shrink()
        return ticket

    def discard(self, ticket: Ticket) -> bool:
        """It waits no more; False when it did not. Its project's turn is not used up."""
        queue = self._queues.get(ticket.share.project_id)
        if queue is None or ticket not in queue.tickets:
            return False
        del queue.tickets[ticket]
        self._shrink()
        return True

    def _shrink(self) -> None:
        self._length -= 1
        if not self._length:
            self._queues.clear()
            self._clock = 0.0


@dataclass(slots=True)
class _Gate:
    """Of one route."""

    line: Line
    inside: int = 0
    left_at: float = 0.0  # monotonic
    interval_s: float = 0.0
    """Smoothed time between two that leave while others wait."""


class Turns:
    """Lets as many requests into a route as its engines work on at once; the others wait.

    `room(route_id)` is that number now, None when it is not known: then nobody waits.
    """

    def __init__(self, room: Callable[[str], int | None], *, longest: int, most_s: float) -> None:
        self._room = room
        self._longest = longest
        self._most_s = most_s
        self._gates: dict[str, _Gate] = {}

    def __len__(self) -> int:
        """Requests that wait."""
        return sum(len(gate.line) for gate in self._gates.values())

    def try_enter(self, route_id: str) -> bool:
        """Go in, if there is room and nobody waits. Give each turn back with `leave`."""
        gate = self._gates.get(route_id)
        if gate is None:
            gate = self._gates[route_id] = _Gate(Line(self._longest))
        if len(gate.line) or not self._has_room(route_id, gate):
            return False
        gate.inside += 1
        return True

    async def wait(self, route_id: str, share: Share) -> None:
        """Until this request may go in. Raises GatewayError 429; then, and when cancelled, it is not inside."""
        gate = self._gates[route_id]
        ticket = Ticket(share, asyncio.get_running_loop().create_future())
        try:
            pushed_out = gate.line.push(ticket)
        except LineFull:
            raise self._overloaded(gate, "too many requests wait for it already") from None
        if pushed_out is not None and not pushed_out.turn.done():
            pushed_out.turn.set_result(False)
        entered = False
        try:
            async with asyncio.timeout(self._most_s):
                entered = await ticket.turn
        except TimeoutError:
            raise self._overloaded(gate, f"the request waited {self._most_s:.0f} s in vain") from None
        finally:
            if not entered:
                self._give_up(route_id, gate, ticket)
        if not entered:
            raise self._overloaded(gate, "too many requests wait for it, most of this project")

    def leave(self, route_id: str) -> None:
        """A turn has ended."""
        gate = self._gates[route_id]
        gate.inside -= 1
        now = time.monotonic()
        if len(gate.line):
            took_s = min(_LONGEST_RETRY_S, now - gate.left_at)
            gate.interval_s += (took_s - gate.interval_s) * (_SMOOTHING if gate.interval_s else 1.0)
            self._let_in(route_id, gate)
        gate.left_at = now

    def changed(self) -> None:
        """Routes have changed: there may be more room. What is kept of unused ones is dropped."""
        for route_id, gate in list(self._gates.items()):
            self._let_in(route_id, gate)
            if not gate.inside and not len(gate.line):
                del self._gates[route_id]

    def _let_in(self, route_id: str, gate: _Gate) -> None:
        while self._has_room(route_id, gate) and (ticket := gate.line.pop()) is not None:
            if not ticket.turn.done():  # else its client has just gone
                gate.inside += 1
                ticket.turn.set_result(True)

    def _give_up(self, route_id: str, gate: _Gate, ticket: Ticket) -> None:
        """It goes without having entered; when it was let in at this very moment, the turn is the next one's."""
        turn = ticket.turn
        if turn.done() and not turn.cancelled() and turn.result():
            self.leave(route_id)
        else:
            gate.line.discard(ticket)

    def _has_room(self, route_id: str, gate: _Gate) -> bool:
        room = self._room(route_id)
        return room is None or gate.inside < room

    def _overloaded(self, gate: _Gate, why: str) -> GatewayError:
        wait_s = min(_LONGEST_RETRY_S, max(1.0, gate.interval_s * len(gate.line)))
        return GatewayError(
            429,
            "engine_overloaded",
            f"All engines of this model are busy, and {why}. Try again after the time in Retry-After, or with fewer "
            "requests at once.",
            retry_after_s=wait_s,
        )


def _greed(queue: _Queue) -> float:
    return len(queue.tickets) / queue.weight
