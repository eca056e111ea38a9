"""Counters of a quota subject: sliding minutes, what is reserved, what the master has not counted yet. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MINUTE_S = 60


class Instant(NamedTuple):
    """One moment on both clocks: `monotonic_s` for windows, `unix_s` for days and months."""

    monotonic_s: float
    unix_s: float


class Window:
    """Sum over the last minute, in steps of a second: an amount leaves 60 to 61 s after it came."""

    __slots__ = ("_steps", "stale_at", "total")

    def __init__(self) -> None:
        self._steps: deque[list[int]] = deque()  # [second, amount]
        self.total = 0
        self.stale_at = math.inf
        """When the next amount leaves: until then `expire` has nothing to do."""

    def expire(self, now: float) -> None:
        """Take out what has left by `now`."""
        if now < self.stale_at:
            return
        steps = self._steps
        while steps and steps[0][0] + 1 + MINUTE_S <= now:
            self.total -= steps.popleft()[1]
        self.stale_at = steps[0][0] + 1 + MINUTE_S if steps else math.inf

    def add(self, amount: int, now: float) -> None:
        second, steps = int(now), self._steps
        if steps and steps[-1][0] >= second:
            steps[-1][1] += amount
        else:
            if not steps:
                self.stale_at = second + 1 + MINUTE_S
            steps.append([second, amount])
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
        """Count what an earlier process counted (Unix second, amount), in order of time; a second is rounded up, so
        that nothing leaves too early."""
        offset = at.monotonic_s - at.unix_s
        for second, amount in steps:
            moved = min(int(second + offset) + 1, int(at.monotonic_s))
            if self._steps:
                moved = max(moved, self._steps[-1][0])
            self._steps.append([moved, amount])
            self.total += amount
        self.stale_at = -math.inf
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


NO_DAYS = range(0)


class Account:
    """Counters of one subject. `day_tokens`, `month_tokens` and `month_cost` are what the master's totals may not hold
    yet, as of the last `look`: plain numbers, as every request asks for them."""

    __slots__ = (
        "_month",
        "_settling",
        "_today",
        "_unacknowledged",
        "day_tokens",
        "month_cost",
        "month_tokens",
        "parallel",
        "requests",
        "reserved_cost",
        "reserved_tokens",
        "tokens",
    )

    def __init__(self) -> None:
        self.requests = Window()
        self.tokens = Window()
        self.parallel = 0
        self.reserved_tokens = 0
        self.reserved_cost = 0
        self.day_tokens = 0
        self.month_tokens = 0
        self.month_cost = 0
        self._today = -1  # of the numbers above; -1: they are to be summed anew
        self._month = NO_DAYS
        self._unacknowledged: dict[int, Spent] = {}  # by day number
        self._settling: deque[tuple[float, int, Spent]] = deque()  # (until, day number, what)

    @property
    def reserved(self) -> Spent:
        return Spent(self.reserved_tokens, self.reserved_cost)

    def look(self, today: int, month: range, now: float) -> None:
        """Bring the numbers up to date. `now` is monotonic."""
        settling = self._settling
        if today == self._today and (not settling or now < settling[0][0]):
            return
        while settling and settling[0][0] <= now:
            settling.popleft()
        self._today, self._month = today, month
        self.day_tokens = self.month_tokens = self.month_cost = 0
        for day, spent in self._unacknowledged.items():
            self._add(day, spent)
        for _, day, spent in settling:
            self._add(day, spent)

    def use(self, day: int, spent: Spent) -> None:
        """Add what the master does not know yet."""
        known = self._unacknowledged.get(day)
        if known is None:
            self._unacknowledged[day] = Spent(spent.tokens, spent.cost)
        else:
            known.tokens += spent.tokens
            known.cost += spent.cost
        self._add(day, spent)

    def settle_with_master(self, day: int, spent: Spent, until: float) -> None:
        """The master has counted this; it counts here until its new totals are surely in."""
        left = self._unacknowledged.get(day, Spent()) - spent
        if left.tokens > 0 or left.cost > 0:
            self._unacknowledged[day] = Spent(max(0, left.tokens), max(0, left.cost))
        else:
            self._unacknowledged.pop(day, None)
        self._settling.append((until, day, spent))
        self._today = -1

    def rebase(self) -> None:
        """The master's new totals are in."""
        self._settling.clear()
        self._today = -1

    def _add(self, day: int, spent: Spent) -> None:
        if day == self._today:
            self.day_tokens += spent.tokens
        if day in self._month:
            self.month_tokens += spent.tokens
            self.month_cost += spent.cost
