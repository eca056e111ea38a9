"""Numbers and moments in words for people. Pure."""

from __future__ import annotations

from datetime import datetime

UNKNOWN = "\N{EN DASH}"
_STEPS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def in_bytes(value: float | None) -> str:
    """`1.5 GiB`; an en dash when unknown."""
    if value is None:
        return UNKNOWN
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit in ("B", "KiB") or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return ""


def in_short(value: float | None) -> str:
    """`950`, `12.3k`, `4.5M`: counts of tokens, requests, parameters."""
    if value is None:
        return UNKNOWN
    number = float(value)
    for unit in ("", "k", "M", "B", "T"):
        if abs(number) < 1000 or unit == "T":
            if not unit:
                return f"{number:.0f}" if number == int(number) or number >= 10 else f"{number:.1f}"
            return f"{number:.0f}{unit}" if number >= 100 else f"{number:.1f}{unit}"
        number /= 1000
    return ""


def for_duration(seconds: float) -> str:
    """`3 d 4 h`, `12 min`, `45 s`: the two largest units that matter."""
    left = int(max(seconds, 0))
    parts = []
    for size, unit in _STEPS:
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
        elif parts:
            break
        if len(parts) == 2 or (parts and unit in ("min", "s")):
            break
    return " ".join(parts) or "0 s"


def since(moment: datetime | None, now: datetime) -> str:
    """`12 min ago`, `in 3 d`, `never`."""
    if moment is None:
        return "never"
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 2:
        return "just now"
    return f"in {for_duration(-seconds)}" if seconds < 0 else f"{for_duration(seconds)} ago"


_TONES = {
    "good": {"online", "ready", "active", "info ok", "run", "valid", "whole", "reachable", "done"},
    "bad": {"lost", "failed", "revoked", "unplaceable", "error", "backoff", "expired", "no"}
    | {"damaged", "missing", "unreachable"},
    "warn": {"degraded", "warning", "unhealthy", "cordoned", "draining", "drain", "offline", "expires soon", "partial"},
    "busy": {"starting", "updating", "stopping", "importing", "fetching", "pending", "never", "stop"}
    | {"queued", "running"},
}


def tone_of(state: str) -> str:
    """Colour group of a state word: good, bad, warn, busy, or quiet for what is neither."""
    for tone, words in _TONES.items():
        if state in words:
            return tone
    return "quiet"
