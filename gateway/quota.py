"""Quotas of keys and projects: requests and tokens a minute, parallel requests, tokens a day and a month. Pure.

Exact under concurrency: an admission reserves what the request may use, `settle` puts what it used in its place. A
minute is a sliding one: in no 60 s are there more than the limit. Counters are those of one gateway process; days and
months add what the master has accounted (all gateways) to what this process has not had acknowledged yet.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from gateway.state import KeyEntry, ProjectEntry
from wire.feed import FeedKey, FeedProject, Limits, UsageRow

MINUTE_S = 60
SETTLING_S = 5.0
"""How long acknowledged tokens still count here while the master's new total is on its way."""


class Instant(NamedTuple):
    """One moment on both clocks: `monotonic_s` for windows, `unix_s` for days and months."""

    monotonic_s: float
    unix_s: float


class LimitKind(StrEnum):
    REQUESTS_PER_MINUTE = "requests per minute"
    TOKENS_PER_MINUTE = "tokens per minute"
    PARALLEL = "parallel requests"
    TOKENS_PER_DAY = "tokens per day"
    TOKENS_PER_MONTH = "tokens per month"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request may use at most."""

    prompt_tokens: int
    completion_tokens: int
    bounded: bool
    """The client bounded the completion (max_tokens). If not, `completion_tokens` is a guess, which is cut to what is
    left rather than a reason to refuse."""


@dataclass(eq=False)
class Refusal(Exception):
    """Why a request is not admitted. `retry_after_s` is when it may be (None: never, it asks for more than allowed)."""

    kind: LimitKind
    owner: str  # key | project
    limit: int
    used: int
    requested: int
    retry_after_s: float | None


class Rate(NamedTuple):
    """State of the tightest limit of one sort, for the x-ratelimit headers."""

    limit: int
    remaining: int
    reset_s: float


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


@dataclass(slots=True)
class Account:
    """Counters of one key or project."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    parallel: int = 0
    reserved: int = 0
    unacknowledged: dict[int, int] = field(default_factory=dict)  # day number -> tokens
    settling: deque[tuple[float, int, int]] = field(default_factory=deque)  # (until, day number, tokens)

    def local_tokens(self, days: range, at: Instant) -> int:
        """Tokens of these days that the master's total may not hold yet."""
        while self.settling and self.settling[0][0] <= at.monotonic_s:
            self.settling.popleft()
        return sum(tokens for day, tokens in self.unacknowledged.items() if day in days) + sum(
            tokens for _, day, tokens in self.settling if day in days
        )


@dataclass(slots=True)
class Hold:
    """What an admitted request holds until it is settled."""

    accounts: tuple[Account, ...]
    reserved: int
    settled: bool = False


class Ledger:
    """All accounts of this process."""

    def __init__(self) -> None:
        self._keys: dict[str, Account] = {}
        self._projects: dict[str, Account] = {}

    def admit(self, key: KeyEntry, project: ProjectEntry, ask: Ask, at: Instant) -> Hold:
        """Reserve for one request on its key and its project, or raise Refusal and change nothing."""
        pairs = (
            ("key", key.key, key.received_at, self._account(self._keys, key.key.id)),
            ("project", project.project, project.received_at, self._account(self._projects, project.project.id)),
        )
        reserve = ask.prompt_tokens + ask.completion_tokens
        for owner, subject, received_at, account in pairs:
            if subject.limits != _UNLIMITED:
                reserve = min(reserve, _check(owner, subject, received_at, account, ask, at))
        for _, _, _, account in pairs:
            account.requests.expire(at.monotonic_s)
            account.requests.add(1, at.monotonic_s)
            account.parallel += 1
            account.reserved += reserve
        return Hold((pairs[0][3], pairs[1][3]), reserve)

    def settle(self, hold: Hold, used_tokens: int, at: Instant) -> None:
        """Put what was used in place of what was reserved. A second call does nothing."""
        if hold.settled:
            return
        hold.settled = True
        day = day_number(at.unix_s)
        for account in hold.accounts:
            account.parallel -= 1
            account.reserved -= hold.reserved
            account.tokens.expire(at.monotonic_s)
            if used_tokens:
                account.tokens.add(used_tokens, at.monotonic_s)
                account.unacknowledged[day] = account.unacknowledged.get(day, 0) + used_tokens

    def rates(self, key: KeyEntry, project: ProjectEntry, at: Instant) -> tuple[Rate | None, Rate | None]:
        """(requests, tokens): the tighter of key and project each; None where neither has that limit."""
        requests: Rate | None = None
        tokens: Rate | None = None
        now = at.monotonic_s
        for subject, account in (
            (key.key, self._account(self._keys, key.key.id)),
            (project.project, self._account(self._projects, project.project.id)),
        ):
            limits: Limits = subject.limits
            if limits.requests_per_minute is not None:
                requests = _tighter(requests, limits.requests_per_minute, account.requests, 0, now)
            if limits.tokens_per_minute is not None:
                tokens = _tighter(tokens, limits.tokens_per_minute, account.tokens, account.reserved, now)
        return requests, tokens

    def restore(self, rows: Iterable[UsageRow]) -> None:
        """Count rows found in the journal at start: not acknowledged yet."""
        for account, day, tokens in self._tokens_of(rows):
            account.unacknowledged[day] = account.unacknowledged.get(day, 0) + tokens

    def acknowledge(self, rows: Iterable[UsageRow], at: Instant) -> None:
        """The master has these rows; they count here for a moment longer, until its new totals come."""
        for account, day, tokens in self._tokens_of(rows):
            left = account.unacknowledged.get(day, 0) - tokens
            if left > 0:
                account.unacknowledged[day] = left
            else:
                account.unacknowledged.pop(day, None)
            account.settling.append((at.monotonic_s + SETTLING_S, day, tokens))

    def rebase(self, key_ids: Iterable[str], project_ids: Iterable[str]) -> None:
        """New totals of these have come from the master."""
        for accounts, ids in ((self._keys, key_ids), (self._projects, project_ids)):
            for name in ids:
                if (account := accounts.get(name)) is not None:
                    account.settling.clear()

    def _tokens_of(self, rows: Iterable[UsageRow]) -> Iterable[tuple[Account, int, int]]:
        for row in rows:
            tokens = row.prompt_tokens + row.completion_tokens
            if tokens:
                day = day_number(row.hour)
                yield self._account(self._keys, row.key_id), day, tokens
                yield self._account(self._projects, row.project_id), day, tokens

    @staticmethod
    def _account(accounts: dict[str, Account], name: str) -> Account:
        account = accounts.get(name)
        if account is None:
            account = accounts[name] = Account()
        return account


_UNLIMITED = Limits()


def day_number(unix_s: float) -> int:
    """Days since 1970-01-01 UTC."""
    return int(unix_s // 86400)


def month_days(unix_s: float) -> range:
    """Day numbers of the UTC month that holds this moment."""
    first = dt.datetime.fromtimestamp(unix_s, dt.UTC).date().replace(day=1)
    following = (first + dt.timedelta(days=32)).replace(day=1)
    epoch = dt.date(1970, 1, 1)
    return range((first - epoch).days, (following - epoch).days)


def _check(
    owner: str, subject: FeedKey | FeedProject, received_at: float, account: Account, ask: Ask, at: Instant
) -> int:
    """Tokens to reserve as far as this subject is concerned. Raises Refusal."""
    limits, now = subject.limits, at.monotonic_s
    wanted = ask.prompt_tokens + ask.completion_tokens
    if limits.parallel_requests is not None and account.parallel >= limits.parallel_requests:
        raise Refusal(LimitKind.PARALLEL, owner, limits.parallel_requests, account.parallel, 1, 1.0)
    if limits.requests_per_minute is not None:
        account.requests.expire(now)
        if account.requests.total >= limits.requests_per_minute:
            raise Refusal(
                LimitKind.REQUESTS_PER_MINUTE,
                owner,
                limits.requests_per_minute,
                account.requests.total,
                1,
                account.requests.frees_in(1, now) if limits.requests_per_minute else None,
            )
    if limits.tokens_per_minute is not None:
        limit = limits.tokens_per_minute
        account.tokens.expire(now)
        if not ask.bounded:
            wanted = min(wanted, max(limit, ask.prompt_tokens + 1))
        used = account.tokens.total + account.reserved
        if used + wanted > limit:
            wait = None if wanted > limit else max(1.0, account.tokens.frees_in(used + wanted - limit, now))
            raise Refusal(LimitKind.TOKENS_PER_MINUTE, owner, limit, used, wanted, wait)
    today = day_number(at.unix_s)
    if limits.tokens_per_day is not None:
        base = subject.used.tokens_today if day_number(received_at) == today else 0
        used = base + account.local_tokens(range(today, today + 1), at) + account.reserved
        until = (today + 1) * 86400 - at.unix_s
        wanted = _fit(LimitKind.TOKENS_PER_DAY, owner, limits.tokens_per_day, base, used, wanted, ask, until)
    if limits.tokens_per_month is not None:
        month = month_days(at.unix_s)
        base = subject.used.tokens_this_month if day_number(received_at) in month else 0
        used = base + account.local_tokens(month, at) + account.reserved
        until = month.stop * 86400 - at.unix_s
        wanted = _fit(LimitKind.TOKENS_PER_MONTH, owner, limits.tokens_per_month, base, used, wanted, ask, until)
    return wanted


def _fit(kind: LimitKind, owner: str, limit: int, base: int, used: int, wanted: int, ask: Ask, until_s: float) -> int:
    """Tokens to reserve. `base`: what is surely used; the rest of `used` is reserved or about to be counted."""
    left = limit - used
    if not ask.bounded and left > ask.prompt_tokens:
        return min(wanted, left)
    needed = wanted if ask.bounded else ask.prompt_tokens + 1
    if needed > limit:
        raise Refusal(kind, owner, limit, used, needed, None)
    if needed > left:  # what is reserved comes back in part when the requests that hold it end
        wait_s = min(until_s, SETTLING_S) if base + needed <= limit else until_s
        raise Refusal(kind, owner, limit, used, needed, wait_s)
    return wanted


def _tighter(best: Rate | None, limit: int, window: Window, reserved: int, now: float) -> Rate:
    window.expire(now)
    remaining = max(0, limit - window.total - reserved)
    if best is not None and best.remaining <= remaining:
        return best
    return Rate(limit, remaining, window.frees_in(window.total, now))
