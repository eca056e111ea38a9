"""Quotas of keys, projects, and projects' use of one model: requests and tokens a minute, parallel requests, tokens a
day and a month, tokens of one request, money a month. Pure.

Exact under concurrency: an admission reserves what the request may use, `settle` puts what it used in its place. A
minute is a sliding one: in no 60 s are there more than the limit. Counters are those of one gateway process; days and
months add what the master has accounted (all gateways) to what this process has not had acknowledged yet.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from gateway.windows import Account, Instant, Spent, Window
from wire.feed import Limits, Price, UsageRow, Used

SETTLING_S = 5.0
"""How long acknowledged tokens still count here while the master's new total is on its way."""
WARN_SHARE = 0.8


class LimitKind(StrEnum):
    REQUESTS_PER_MINUTE = "requests per minute"
    TOKENS_PER_MINUTE = "tokens per minute"
    PARALLEL = "parallel requests"
    TOKENS_PER_DAY = "tokens per day"
    TOKENS_PER_MONTH = "tokens per month"
    TOKENS_PER_REQUEST = "tokens per request"
    COST_PER_MONTH = "cost per month"


@dataclass(frozen=True, slots=True)
class Subject:
    """What has a quota. One without limits is no subject: nothing is counted for it."""

    owner: str  # key | project | model
    name: str  # of its account: unique over all subjects
    limits: Limits
    used: Used
    received_at: float
    """Unix time at which the master told `used`: it is of that day and month."""


def key_account(key_id: str) -> str:
    return f"key:{key_id}"


def project_account(project_id: str) -> str:
    return f"project:{project_id}"


def model_account(project_id: str, model: str) -> str:
    return f"model:{project_id}:{model}"


class Ask(NamedTuple):
    """What a request may use at most."""

    prompt_tokens: int
    completion_tokens: int
    bounded: bool
    """The client bounded the completion (max_tokens). If not, `completion_tokens` is a guess, which is cut to what is
    left rather than a reason to refuse."""
    price: Price | None = None

    def spent(self, tokens: int) -> Spent:
        """`tokens` of which the prompt's are part, at this price."""
        if self.price is None:
            return Spent(tokens)
        return Spent(tokens, self.price.cost(self.prompt_tokens, 0, max(0, tokens - self.prompt_tokens)))


@dataclass(eq=False)
class Refusal(Exception):
    """Why a request is not admitted. `retry_after_s` is when it may be (None: never, it asks for more than allowed)."""

    kind: LimitKind
    owner: str  # key | project | model
    limit: int
    used: int
    requested: int
    retry_after_s: float | None


class Rate(NamedTuple):
    """State of the tightest limit of one sort, for the x-ratelimit headers."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(slots=True)
class Hold:
    """What an admitted request holds until it is settled."""

    accounts: tuple[Account, ...]
    reserved: Spent
    bound: int | None = None
    """Completion tokens to which the engine must be held: a limit left less than the client would have had."""
    settled: bool = False
    names: tuple[str, ...] = ()
    """Of the accounts."""
    shared: bool = False
    """It counts over all processes, too."""


NOTHING_HELD = Hold((), Spent(), None, True)


class Ledger:
    """All accounts of this process."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def admit(self, subjects: Sequence[Subject], ask: Ask, at: Instant) -> Hold:
        """Reserve for one request on its subjects, or raise Refusal and change nothing."""
        if not subjects:
            return NOTHING_HELD
        accounts = [self._account(subject.name) for subject in subjects]
        wanted = ask.prompt_tokens + ask.completion_tokens
        tokens, bound = wanted, None
        today, month = day_number(at.unix_s), month_days(at.unix_s)
        for subject, account in zip(subjects, accounts, strict=True):
            tokens = min(tokens, check(subject, account, ask, at, today, month))
        if tokens < wanted:
            bound = max(1, tokens - ask.prompt_tokens)
        reserved = ask.spent(tokens)
        for subject, account in zip(subjects, accounts, strict=True):
            if subject.limits.cost_per_month is not None:
                check_cost(subject, account, subject.limits.cost_per_month, reserved.cost, at, month)
        return self.take([subject.name for subject in subjects], reserved, bound, at)

    def take(self, names: Sequence[str], reserved: Spent, bound: int | None, at: Instant) -> Hold:
        """Reserve without asking: it has been decided."""
        accounts = tuple(self._account(name) for name in names)
        for account in accounts:
            account.requests.expire(at.monotonic_s)
            account.requests.add(1, at.monotonic_s)
            account.parallel += 1
            account.reserved += reserved
        return Hold(accounts, reserved, bound, names=tuple(names))

    def held(self) -> list[tuple[str, int, Spent]]:
        """(account, requests, what they reserved) of everything that runs."""
        return [(name, found.parallel, found.reserved) for name, found in self._accounts.items() if found.parallel]

    def local(self, name: str, days: range, at: Instant) -> Spent:
        """Of these days, what the master may not have counted yet."""
        return self._account(name).local(days, at)

    def settle(self, hold: Hold, used: Spent, at: Instant) -> None:
        """Put what was used in place of what was reserved. A second call does nothing."""
        if hold.settled:
            return
        hold.settled = True
        day = day_number(at.unix_s)
        for account in hold.accounts:
            account.parallel -= 1
            account.reserved -= hold.reserved
            account.tokens.expire(at.monotonic_s)
            if used.tokens:
                account.tokens.add(used.tokens, at.monotonic_s)
            if used.tokens or used.cost:
                account.use(day, used)

    def rates(self, subjects: Sequence[Subject], at: Instant) -> tuple[Rate | None, Rate | None]:
        """(requests, tokens): the tightest of all subjects; None where none has that limit."""
        requests: Rate | None = None
        tokens: Rate | None = None
        now = at.monotonic_s
        for subject in subjects:
            limits, account = subject.limits, self._account(subject.name)
            if limits.requests_per_minute is not None:
                requests = _tighter(requests, limits.requests_per_minute, account.requests, 0, now)
            if limits.tokens_per_minute is not None:
                tokens = _tighter(tokens, limits.tokens_per_minute, account.tokens, account.reserved.tokens, now)
        return requests, tokens

    def warnings(self, subjects: Sequence[Subject], at: Instant) -> tuple[str, ...]:
        """Limits a day or a month of which four fifths are used: `project tokens per day 85%`."""
        found: list[str] = []
        today, month = day_number(at.unix_s), month_days(at.unix_s)
        for subject in subjects:
            limits = subject.limits
            if limits.tokens_per_day is limits.tokens_per_month is limits.cost_per_month is None:
                continue
            for kind, limit, used in _calendar(subject, self._account(subject.name), at, today, month):
                if limit and used >= WARN_SHARE * limit:
                    found.append(f"{subject.owner} {kind} {100 * used // limit}%")
        return tuple(found)

    def restore(self, rows: Iterable[UsageRow]) -> None:
        """Count rows found in the journal at start: not acknowledged yet."""
        for account, day, spent in self._spent_of(rows):
            account.use(day, spent)

    def acknowledge(self, rows: Iterable[UsageRow], at: Instant) -> None:
        """The master has these rows; they count here for a moment longer, until its new totals come."""
        for account, day, spent in self._spent_of(rows):
            account.settle_with_master(day, spent, at.monotonic_s + SETTLING_S)

    def rebase(self, names: Iterable[str]) -> None:
        """New totals of these accounts have come from the master."""
        for name in names:
            if (account := self._accounts.get(name)) is not None:
                account.settling.clear()

    def minutes(self, at: Instant) -> dict[str, tuple[list[tuple[int, int]], list[tuple[int, int]]]]:
        """(requests, tokens) of the last minute by account, to be kept on disk."""
        kept = {
            name: (account.requests.steps(at), account.tokens.steps(at)) for name, account in self._accounts.items()
        }
        return {name: windows for name, windows in kept.items() if windows[0] or windows[1]}

    def restore_minutes(
        self, kept: Mapping[str, tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]], at: Instant
    ) -> None:
        """Count what an earlier process had counted within the last minute."""
        for name, (requests, tokens) in kept.items():
            account = self._account(name)
            account.requests.restore(requests, at)
            account.tokens.restore(tokens, at)

    def _spent_of(self, rows: Iterable[UsageRow]) -> Iterable[tuple[Account, int, Spent]]:
        for row in rows:
            spent = Spent(row.prompt_tokens + row.completion_tokens, row.cost)
            if spent.tokens or spent.cost:
                day = day_number(row.hour)
                for name in (
                    key_account(row.key_id),
                    project_account(row.project_id),
                    model_account(row.project_id, row.model),
                ):
                    yield self._account(name), day, spent

    def _account(self, name: str) -> Account:
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account()
        return account


def day_number(unix_s: float) -> int:
    """Days since 1970-01-01 UTC."""
    return int(unix_s // 86400)


def month_days(unix_s: float) -> range:
    """Day numbers of the UTC month that holds this moment."""
    return _month_of(day_number(unix_s))


@functools.lru_cache(maxsize=16)
def _month_of(day: int) -> range:
    first = (dt.date(1970, 1, 1) + dt.timedelta(days=day)).replace(day=1)
    following = (first + dt.timedelta(days=32)).replace(day=1)
    epoch = dt.date(1970, 1, 1)
    return range((first - epoch).days, (following - epoch).days)


def check_size(subject: Subject, ask: Ask) -> Ask:
    """What one request may ask of this subject: a guess is cut. Raises Refusal."""
    limit = subject.limits.max_tokens_per_request
    wanted = ask.prompt_tokens + ask.completion_tokens
    if limit is None or wanted <= limit:
        return ask
    if ask.bounded or ask.prompt_tokens >= limit:
        raise Refusal(LimitKind.TOKENS_PER_REQUEST, subject.owner, limit, 0, wanted, None)
    return ask._replace(completion_tokens=limit - ask.prompt_tokens)


def check(subject: Subject, account: Account, ask: Ask, at: Instant, today: int, month: range) -> int:
    """Tokens to reserve as far as this subject is concerned; `today` and `month` are of `at`. Raises Refusal."""
    limits, now = subject.limits, at.monotonic_s
    if limits.max_tokens_per_request is not None:
        ask = check_size(subject, ask)
    wanted = ask.prompt_tokens + ask.completion_tokens
    if (limit := limits.parallel_requests) is not None and account.parallel >= limit:
        raise Refusal(LimitKind.PARALLEL, subject.owner, limit, account.parallel, 1, 1.0)
    if (limit := limits.requests_per_minute) is not None:
        account.requests.expire(now)
        if (used := account.requests.total) >= limit:
            wait_s = account.requests.frees_in(1, now) if limit else None
            raise Refusal(LimitKind.REQUESTS_PER_MINUTE, subject.owner, limit, used, 1, wait_s)
    if (limit := limits.tokens_per_minute) is not None:
        account.tokens.expire(now)
        if not ask.bounded:
            wanted = min(wanted, max(limit, ask.prompt_tokens + 1))
        used = account.tokens.total + account.reserved.tokens
        if used + wanted > limit:
            wait = None if wanted > limit else max(1.0, account.tokens.frees_in(used + wanted - limit, now))
            raise Refusal(LimitKind.TOKENS_PER_MINUTE, subject.owner, limit, used, wanted, wait)
    if limits.tokens_per_day is not None or limits.tokens_per_month is not None:
        wanted = _fit_calendar(subject, account, ask, wanted, at, today, month)
    return wanted


def check_cost(subject: Subject, account: Account, limit: int, cost: int, at: Instant, month: range) -> None:
    """Raises Refusal when the month's money does not last for `cost` (nano-units)."""
    base = subject.used.cost_this_month if day_number(subject.received_at) in month else 0
    used = base + account.local(month, at).cost + account.reserved.cost
    if used + cost > limit or used >= limit:
        until_s = month.stop * 86400 - at.unix_s
        wait_s = min(until_s, SETTLING_S) if base + cost <= limit and base < limit else until_s
        raise Refusal(LimitKind.COST_PER_MONTH, subject.owner, limit, used, cost, wait_s)


def _fit_calendar(
    subject: Subject, account: Account, ask: Ask, wanted: int, at: Instant, today: int, month: range
) -> int:
    limits, told = subject.limits, day_number(subject.received_at)
    if (limit := limits.tokens_per_day) is not None:
        base = subject.used.tokens_today if told == today else 0
        used = base + account.local(range(today, today + 1), at).tokens + account.reserved.tokens
        until = (today + 1) * 86400 - at.unix_s
        wanted = _fit(LimitKind.TOKENS_PER_DAY, subject.owner, limit, base, used, wanted, ask, until)
    if (limit := limits.tokens_per_month) is not None:
        base = subject.used.tokens_this_month if told in month else 0
        used = base + account.local(month, at).tokens + account.reserved.tokens
        until = month.stop * 86400 - at.unix_s
        wanted = _fit(LimitKind.TOKENS_PER_MONTH, subject.owner, limit, base, used, wanted, ask, until)
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


def _calendar(
    subject: Subject, account: Account, at: Instant, today: int, month: range
) -> list[tuple[LimitKind, int, int]]:
    """(kind, limit, used) of each limit a day or a month."""
    limits, used, told = subject.limits, subject.used, day_number(subject.received_at)
    found = []
    if (limit := limits.tokens_per_day) is not None:
        base = used.tokens_today if told == today else 0
        found.append((LimitKind.TOKENS_PER_DAY, limit, base + account.local(range(today, today + 1), at).tokens))
    local, in_month = account.local(month, at), told in month
    if (limit := limits.tokens_per_month) is not None:
        base = used.tokens_this_month if in_month else 0
        found.append((LimitKind.TOKENS_PER_MONTH, limit, base + local.tokens))
    if (limit := limits.cost_per_month) is not None:
        base = used.cost_this_month if in_month else 0
        found.append((LimitKind.COST_PER_MONTH, limit, base + local.cost))
    return found


def _tighter(best: Rate | None, limit: int, window: Window, reserved: int, now: float) -> Rate:
    window.expire(now)
    remaining = max(0, limit - window.total - reserved)
    if best is not None and best.remaining <= remaining:
        return best
    return Rate(limit, remaining, window.empties_in(now))
