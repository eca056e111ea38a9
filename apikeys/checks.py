"""What projects, keys and limits may look like: each check returns the value as it is stored."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from apikeys.errors import (
    InvalidEndpoints,
    InvalidExpiry,
    InvalidGuard,
    InvalidLimits,
    InvalidModels,
    InvalidName,
    InvalidNetworks,
    InvalidRequestLog,
)
from wire.feed import ENDPOINT_GROUPS
from wire.redaction import MOST_PATTERNS, BadPattern, Redaction

LIMIT_FIELDS = (
    "requests_per_minute",
    "tokens_per_minute",
    "parallel_requests",
    "tokens_per_day",
    "tokens_per_month",
    "max_tokens_per_request",
    "cost_per_month",
)
"""Of `models.Limits` and `wire.feed.Limits`; `cost_per_month` is in nano-units."""
HIGHEST_PRIORITY = 100
MOST_LOG_DAYS = 365
LONGEST_GUARD_MS = 60_000
LONGEST_OVERLAP = dt.timedelta(days=30)
_MOST_NETWORKS = 100
_SMALL_LIMITS = ("requests_per_minute", "parallel_requests")  # 32-bit columns


def checked_name(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise InvalidName("The name must have 1 to 80 printable characters.")
    return name


def checked_guard_url(url: str) -> str:
    """Where a project's guard is; empty: it has none."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if url and not (is_good and len(url) <= 500 and url.isprintable() and " " not in url):
        raise InvalidGuard("The guard's address must be an http or https URL.")
    return url


def checked_guard_timeout(timeout_ms: int) -> int:
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int) or not 1 <= timeout_ms <= LONGEST_GUARD_MS:
        raise InvalidGuard(f"A guard is given 1 to {LONGEST_GUARD_MS} ms.")
    return timeout_ms


def checked_log_days(days: int | None) -> int | None:
    if days is not None and not (isinstance(days, int) and 1 <= days <= MOST_LOG_DAYS):
        raise InvalidRequestLog(f"Requests are kept for 1 to {MOST_LOG_DAYS} days, or not at all.")
    return days


def checked_patterns(patterns: Sequence[str] | None) -> list[str]:
    """Patterns of the request log, each RE2's."""
    found = list(dict.fromkeys(patterns or ()))
    if len(found) > MOST_PATTERNS:
        raise InvalidRequestLog(f"There may be {MOST_PATTERNS} patterns at most.")
    for pattern in found:
        try:
            Redaction([pattern])
        except BadPattern as error:
            raise InvalidRequestLog(f"{pattern!r} is no pattern: {error}.") from error
    return found


def checked_limits(limits: dict[str, Any]) -> dict[str, int | None]:
    for field, value in limits.items():
        if field not in LIMIT_FIELDS:
            raise TypeError(f"not a limit: {field}")
        if value is None:
            continue
        largest = 2**31 - 1 if field in _SMALL_LIMITS else 2**63 - 1
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise InvalidLimits(f"{field} must be a whole number from 1 to {largest}, or empty.")
    return limits


def checked_models(models: Sequence[str] | None) -> list[str] | None:
    if not models:
        return None
    if isinstance(models, str) or not all(isinstance(name, str) for name in models):
        raise InvalidModels("The allowed models must be a list of names.")
    names = list(dict.fromkeys(name.strip() for name in models))
    if not all(1 <= len(name) <= 120 for name in names) or len(names) > 1000:
        raise InvalidModels("The allowed models hold an empty or too long name.")
    return names


def checked_model(name: str) -> str:
    """One public model name."""
    found = checked_models([name])
    if found is None:
        raise InvalidModels("The model's name is empty.")
    return found[0]


def checked_endpoints(groups: Sequence[str] | None) -> list[str] | None:
    """Groups of endpoints in their usual order; None: all."""
    if not groups:
        return None
    if isinstance(groups, str) or (unknown := sorted({str(group) for group in groups} - set(ENDPOINT_GROUPS))):
        told = groups if isinstance(groups, str) else ", ".join(unknown)
        raise InvalidEndpoints(f"Not a group of endpoints: {told[:200]}.")
    return [group for group in ENDPOINT_GROUPS if group in groups]


def checked_networks(networks: Sequence[str] | None) -> list[str] | None:
    """CIDRs as the standard library writes them; a single address is a network of one; None: any."""
    if not networks:
        return None
    if isinstance(networks, str) or not all(isinstance(network, str) for network in networks):
        raise InvalidNetworks("The allowed networks must be a list of texts.")
    if len(networks) > _MOST_NETWORKS:
        raise InvalidNetworks(f"There are more than {_MOST_NETWORKS} networks.")
    found = []
    for network in networks:
        try:
            found.append(str(ipaddress.ip_network(network.strip())))
        except ValueError as error:
            raise InvalidNetworks(f"{network[:60]!r} is not a network: {error}.") from error
    return list(dict.fromkeys(found))


def checked_service(name: str) -> str:
    return checked_name(name) if name.strip() else ""


def checked_priority(priority: int) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or not 1 <= priority <= HIGHEST_PRIORITY:
        raise InvalidLimits(f"The priority must be a whole number from 1 to {HIGHEST_PRIORITY}.")
    return priority


def checked_overlap(overlap: dt.timedelta) -> dt.timedelta:
    """How long two secrets of a key are good at once."""
    if not dt.timedelta() <= overlap <= LONGEST_OVERLAP:
        raise InvalidExpiry(f"The overlap must be from 0 seconds to {LONGEST_OVERLAP.days} days.")
    return overlap


def checked_expiry(expires_at: dt.datetime | None, now: dt.datetime) -> dt.datetime | None:
    if expires_at is None:
        return None
    if expires_at.tzinfo is None:
        raise InvalidExpiry("The expiry needs a time zone.")
    if expires_at <= now:
        raise InvalidExpiry(f"The expiry {expires_at.isoformat()} has passed already.")
    return expires_at
