"""Quotas of keys, projects, and projects' use of one model: requests and tokens a minute, parallel requests, tokens a
day and a month, tokens of one request, money a month. Pure.

Exact under concurrency: an admission reserves what the request may use, `settle` puts what it used in its place. A
minute is a sliding one: in no 60 s are there more than the limit. Counters are those of one gateway process; days and
months add what the master has accounted (all gateways) to what this process has not had acknowledged yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.quotas.checks import check, check_cost
from gateway.quotas.subjects import (
    SETTLING_S,
    Ask,
    LimitKind,
    Rate,
    Subject,
    day_number,
    key_account,
    model_account,
    month_days,
    project_account,
)
from gateway.quotas.windows import NO_DAYS, Account, Instant, Spent, Window
from gateway.usage.records import Record
from gateway.usage.replay import Asked
from wire.feed import UsageRow

WARN_SHARE = 0.8


@dataclass(slots=True)
class Hold:
    """What an admitted request holds until it is settled."""

    accounts: Sequence[Account]
    reserved: Spent
    bound: int | None = None
    """Completion tokens to which the engine must be held: a limit left less than the client would have had."""
    settled: bool = False
    names: Sequence[str] = ()
    """Of the accounts."""
    shared: bool = False
    """It counts over all processes, too."""


NOTHING_HELD = Hold((), Spent(), None, True)


class Ledger:
    """All accounts of this process."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._today = -1
        self._month = NO_DAYS

    def admit(self, subjects: Sequence[Subject], ask: Ask, at: Instant) -> Hold:
        """Reserve for one request on its subjects, or raise Refusal and change nothing."""
        if not subjects:
            return NOTHING_HELD
        wanted = ask.prompt_tokens + ask.completion_tokens
        tokens, bound = wanted, None
        today, month = self._dates(at.unix_s)
        has_budget = False
        for subject in subjects:
            fits = check(subject, self._account(subject.name), ask, at, today, month)
            if fits < tokens:
                tokens = fits
            if subject.limits.cost_per_month is not None:
                has_budget = True
        if tokens < wanted:
            bound = max(1, tokens - ask.prompt_tokens)
        reserved = ask.spent(tokens)
        if has_budget:
            for subject in subjects:
                if (limit := subject.limits.cost_per_month) is not None:
                    check_cost(subject, self._account(subject.name), limit, reserved.cost, at, month)
        return self.take([subject.name for subject in subjects], reserved, bound, at)

    def take(self, names: Sequence[str], reserved: Spent, bound: int | None, at: Instant) -> Hold:
        """Reserve without asking: it has been decided."""
        accounts = [self._account(name) for name in names]
        now, tokens, cost = at.monotonic_s, reserved.tokens, reserved.cost
        for account in accounts:
            requests = account.requests
            requests.expire(now)
            requests.add(1, now)
            account.parallel += 1
            account.reserved_tokens += tokens
            account.reserved_cost += cost
        return Hold(accounts, reserved, bound, names=names)

    def held(self) -> list[tuple[str, int, Spent]]:
        """(account, requests, what they reserved) of everything that runs."""
        return [(name, found.parallel, found.reserved) for name, found in self._accounts.items() if found.parallel]

    def local(self, name: str, at: Instant) -> tuple[int, Spent]:
        """(tokens of today, use of this month) that the master may not have counted yet."""
        account = self._account(name)
        account.look(*self._dates(at.unix_s), at.monotonic_s)
        return account.day_tokens, Spent(account.month_tokens, account.month_cost)

    def settle(self, hold: Hold, used: Spent, at: Instant) -> None:
        """Put what was used in place of what was reserved. A second call does nothing."""
        if hold.settled:
            return
        hold.settled = True
        today, _ = self._dates(at.unix_s)
        now, reserved = at.monotonic_s, hold.reserved
        for account in hold.accounts:
            account.parallel -= 1
            account.reserved_tokens -= reserved.tokens
            account.reserved_cost -= reserved.cost
            if used.tokens:
                tokens = account.tokens
                tokens.expire(now)
                tokens.add(used.tokens, now)
            if used.tokens or used.cost:
                account.use(today, used)

    def rates(self, subjects: Sequence[Subject], at: Instant) -> tuple[Rate | None, Rate | None]:
        """(requests, tokens): the tightest of all subjects; None where none has that limit."""
        requests: Rate | None = None
        tokens: Rate | None = None
        now = at.monotonic_s
        for subject in subjects:
            limits = subject.limits
            if (limit := limits.requests_per_minute) is not None:
                requests = _tighter(requests, limit, self._account(subject.name).requests, 0, now)
            if (limit := limits.tokens_per_minute) is not None:
                account = self._account(subject.name)
                tokens = _tighter(tokens, limit, account.tokens, account.reserved_tokens, now)
        return requests, tokens

    def warnings(self, subjects: Sequence[Subject], at: Instant) -> tuple[str, ...]:
        """Limits a day or a month of which four fifths are used: `project tokens per day 85%`."""
        found: tuple[str, ...] = ()
        for subject in subjects:
            if subject.has_calendar:
                found += self._warnings(subject, at)
        return found

    def _warnings(self, subject: Subject, at: Instant) -> tuple[str, ...]:
        today, month = self._dates(at.unix_s)
        limits, used, account = subject.limits, subject.used, self._account(subject.name)
        account.look(today, month, at.monotonic_s)
        in_month = subject.told_day in month
        found: tuple[str, ...] = ()
        if (limit := limits.tokens_per_day) is not None:
            base = used.tokens_today if subject.told_day == today else 0
            found += _warning(subject, LimitKind.TOKENS_PER_DAY, limit, base + account.day_tokens)
        if (limit := limits.tokens_per_month) is not None:
            base = used.tokens_this_month if in_month else 0
            found += _warning(subject, LimitKind.TOKENS_PER_MONTH, limit, base + account.month_tokens)
        if (limit := limits.cost_per_month) is not None:
            base = used.cost_this_month if in_month else 0
            found += _warning(subject, LimitKind.COST_PER_MONTH, limit, base + account.month_cost)
        return found

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
                account.rebase()

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

    def restore_asked(self, asked: Iterable[Asked], at: Instant) -> None:
        """Count what went to engines since those were kept; in order of time."""
        requests: dict[str, list[tuple[int, int]]] = {}
        tokens: dict[str, list[tuple[int, int]]] = {}
        for unix_s, record, count, used in asked:
            for name in _accounts_of(record):
                if count:
                    requests.setdefault(name, []).append((int(unix_s), count))
                if used:
                    tokens.setdefault(name, []).append((int(unix_s), used))
        for name, steps in requests.items():
            self._account(name).requests.restore(steps, at)
        for name, steps in tokens.items():
            self._account(name).tokens.restore(steps, at)

    def _spent_of(self, rows: Iterable[UsageRow]) -> Iterable[tuple[Account, int, Spent]]:
        for row in rows:
            spent = Spent(row.prompt_tokens + row.completion_tokens, row.cost)
            if spent.tokens or spent.cost:
                day = day_number(row.hour)
                for name in _accounts_of(row):
                    yield self._account(name), day, spent

    def _account(self, name: str) -> Account:
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account()
        return account

    def _dates(self, unix_s: float) -> tuple[int, range]:
        """(day number, days of the month) of this moment."""
        today = int(unix_s // 86400)
        if today != self._today:
            self._today, self._month = today, month_days(unix_s)
        return today, self._month


def _accounts_of(used: UsageRow | Record) -> tuple[str, str, str]:
    return (
        key_account(used.key_id),
        project_account(used.project_id),
        model_account(used.project_id, used.model),
    )


def _warning(subject: Subject, kind: LimitKind, limit: int, used: int) -> tuple[str, ...]:
    if not limit or used < WARN_SHARE * limit:
        return ()
    return (f"{subject.owner} {kind} {100 * used // limit}%",)


def _tighter(best: Rate | None, limit: int, window: Window, reserved: int, now: float) -> Rate:
    window.expire(now)
    remaining = max(0, limit - window.total - reserved)
    if best is not None and best.remaining <= remaining:
        return best
    return Rate(limit, remaining, window.empties_in(now))
