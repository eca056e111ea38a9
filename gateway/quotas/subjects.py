"""Whose quota it is, what a request asks of it, and what it may not have. Pure values."""

from __future__ import annotations

import datetime as dt
import functools
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from gateway.quotas.windows import Spent
from wire.feed import Limits, Price, Used

SETTLING_S = 5.0
"""How long acknowledged tokens still count here while the master's new total is on its way."""


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
    told_day: int = field(init=False)
    """Number of that day."""
    has_calendar: bool = field(init=False)
    """It has a limit a day or a month."""

    def __post_init__(self) -> None:
        limits = self.limits
        by_calendar = (limits.tokens_per_day, limits.tokens_per_month, limits.cost_per_month)
        object.__setattr__(self, "told_day", day_number(self.received_at))
        object.__setattr__(self, "has_calendar", any(limit is not None for limit in by_calendar))


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
