"""Counters of a quota subject: sliding minutes, what is reserved, what the master has not counted yet. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MINUTE_S = 60


class Instant(NamedTuple):
    """One moment on both clocks: `monotonic_s` for windows, `unix_s` for days and months."""

    monotonic_s: float
    unix_s: float


class Window:
    """Sum over the last minute, in steps of a second: an amount leaves 60 to 61 s after it came."""

    __slots__ = ("_steps", "total")

    def __init__(self) -> None:
        self._steps: deque[list[int]] = deque()  # [second, amount]
        self.total = 0

    def expire(self, now: float) -> None:
        while self._steps and self._steps[0][0] + 1 + MINUTE_S <= now:
            self.total -= self._steps.popleft()[1]

    def add(self, amount: int, now: float) -> None:
        second = int(now)
        if self._steps and self._steps[-1][0] >= second:
            self._steps[-1][1] += amount
        else:
            self._steps.append([second, amount])
        self.total += amount

    def frees_in(self, amount: int, now: float) -> float:
        """Seconds until at least `amount` has left (all of it, when there is less)."""
        freed, at = 0, now
        for second, value in self._steps:
            if freed >= amount:
                break
            freed, at = freed + value, second + 1 + MINUTE_S
        return max(0.0, at - now)

    def empties_in(self, now: float) -> float:
        """Seconds until all of it has left."""
        return max(0.0, self._steps[-1][0] + 1 + MINUTE_S - now) if self._steps else 0.0

    def steps(self, at: Instant) -> list[tuple[int, int]]:
        """(Unix second, amount), to be kept on disk."""
        self.expire(at.monotonic_s)
        offset = at.unix_s - at.monotonic_s
        return [(int(second + offset), amount) for second, amount in self._steps]

    def restore(self, steps: Sequence[tuple[int, int]], at: Instant) -> None:
        """Count what an earlier process counted; a second is rounded up, so that nothing leaves too early."""
        offset = at.monotonic_s - at.unix_s
        for second, amount in steps:
            moved = min(int(second + offset) + 1, int(at.monotonic_s))
            self._steps.append([moved, amount])
            self.total += amount
        self.expire(at.monotonic_s)


@dataclass(slots=True)
class Spent:
    """Tokens and money."""

    tokens: int = 0
    cost: int = 0  # nano-units

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.tokens - other.tokens, self.cost - other.cost)


NOTHING = Spent()


@dataclass(slots=True)
class Account:
    """Counters of one subject."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    parallel: int = 0
    reserved: Spent = field(default_factory=Spent)
    unacknowledged: dict[int, Spent] = field(default_factory=dict)  # by day number
    settling: deque[tuple[float, int, Spent]] = field(default_factory=deque)  # (until, day number, what)

    def local(self, days: range, at: Instant) -> Spent:
        """Of these days, what the master's total may not hold yet."""
        while self.settling and self.settling[0][0] <= at.monotonic_s:
            self.settling.popleft()
        if not self.settling and len(self.unacknowledged) < 2:  # nearly always; and this is asked for often
            for day, spent in self.unacknowledged.items():
                return spent if day in days else NOTHING
            return NOTHING
        tokens = cost = 0
        for day, spent in self.unacknowledged.items():
            if day in days:
                tokens, cost = tokens + spent.tokens, cost + spent.cost
        for _, day, spent in self.settling:
            if day in days:
                tokens, cost = tokens + spent.tokens, cost + spent.cost
        return Spent(tokens, cost)

    def use(self, day: int, spent: Spent) -> None:
        """Add what the master does not know yet."""
        self.unacknowledged[day] = self.unacknowledged.get(day, Spent()) + spent

    def settle_with_master(self, day: int, spent: Spent, until: float) -> None:
        """The master has counted this; it counts here until its new totals are surely in."""
        left = self.unacknowledged.get(day, Spent()) + Spent(-spent.tokens, -spent.cost)
        if left.tokens > 0 or left.cost > 0:
            self.unacknowledged[day] = Spent(max(0, left.tokens), max(0, left.cost))
        else:
            self.unacknowledged.pop(day, None)
        self.settling.append((until, day, spent))
