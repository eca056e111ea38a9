"""Whether a request fits into what is left of one subject's limits. Pure."""

from __future__ import annotations

from gateway.quotas.subjects import SETTLING_S, Ask, LimitKind, Refusal, Subject
from gateway.quotas.windows import Account, Instant


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
        used = account.tokens.total + account.reserved_tokens
        if used + wanted > limit:
            wait = None if wanted > limit else max(1.0, account.tokens.frees_in(used + wanted - limit, now))
            raise Refusal(LimitKind.TOKENS_PER_MINUTE, subject.owner, limit, used, wanted, wait)
    if subject.has_calendar:
        account.look(today, month, now)
        wanted = _fit_calendar(subject, account, ask, wanted, at, today, month)
    return wanted


def check_cost(subject: Subject, account: Account, limit: int, cost: int, at: Instant, month: range) -> None:
    """Raises Refusal when the month's money does not last for `cost` (nano-units); after `check`."""
    base = subject.used.cost_this_month if subject.told_day in month else 0
    used = base + account.month_cost + account.reserved_cost
    if used + cost > limit or used >= limit:
        until_s = month.stop * 86400 - at.unix_s
        wait_s = min(until_s, SETTLING_S) if base + cost <= limit and base < limit else until_s
        raise Refusal(LimitKind.COST_PER_MONTH, subject.owner, limit, used, cost, wait_s)


def _fit_calendar(
    subject: Subject, account: Account, ask: Ask, wanted: int, at: Instant, today: int, month: range
) -> int:
    limits, told = subject.limits, subject.told_day
    if (limit := limits.tokens_per_day) is not None:
        base = subject.used.tokens_today if told == today else 0
        used = base + account.day_tokens + account.reserved_tokens
        until = (today + 1) * 86400 - at.unix_s
        wanted = _fit(LimitKind.TOKENS_PER_DAY, subject.owner, limit, base, used, wanted, ask, until)
    if (limit := limits.tokens_per_month) is not None:
        base = subject.used.tokens_this_month if told in month else 0
        used = base + account.month_tokens + account.reserved_tokens
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
