"""What the charts of the usage page draw, and the same as a table. Pure: sums in, series out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from apikeys.money import from_nano
from apikeys.usage import UsageTotal
from templates.words import UNKNOWN

LARGEST_SHARES = 6
"""So many projects, keys or models have a colour of their own; the rest is drawn as one."""
OTHERS = "others"
STEPS = {"hour": dt.timedelta(hours=1), "day": dt.timedelta(days=1)}
MEASURES: dict[str, tuple[str, Callable[[UsageTotal], float]]] = {
    "requests": ("Requests", lambda row: row.requests),
    "tokens": ("Tokens", lambda row: row.total_tokens),
    "errors": ("Failed requests", lambda row: row.errors),
    "cost": ("Cost", lambda row: float(from_nano(row.cost))),
}
"""Sums: (title, value of a row)."""


@dataclass(frozen=True)
class Charts:
    """`series` is what `charts.js` draws; `table` has the same numbers, for whoever cannot see a chart."""

    series: dict[str, Any]
    heads: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]


def charts(rows: Iterable[UsageTotal], *, step: str, split: str, since: dt.datetime, until: dt.datetime) -> Charts:
    """Of rows summed by `step` (hour or day) and, when it is not empty, by `split` (project, key or model).

    Moments without use are zero, so that the axis is even.
    """
    moments = _moments(step, since, until)
    found: dict[str, dict[dt.datetime, UsageTotal]] = {}
    for row in rows:
        found.setdefault(_share(row, split), {})[_moment(row)] = row
    ranked = sorted(found, key=lambda name: (-sum(row.total_tokens for row in found[name].values()), name))
    own, rest = ranked[:LARGEST_SHARES], ranked[LARGEST_SHARES:]
    labels = [_label(moment, step, until - since) for moment in moments]
    series: dict[str, Any] = {"labels": labels}
    for measure, (title, value) in MEASURES.items():
        series[measure] = [_set(name or title, moments, found[name], value) for name in own]
        if rest:
            together = [sum(value(found[name][at]) for name in rest if at in found[name]) for at in moments]
            series[measure].append({"label": OTHERS, "data": together})
    if not split:
        series["tokens"] = _token_sorts(moments, found.get("", {}))
    series["ttft"] = [
        {"label": name or "Time to first token", "data": [_first_token_ms(found[name].get(at)) for at in moments]}
        for name in own
    ]
    return Charts(series, _heads(split), _table(found, own + rest, moments, labels, split))


def _moments(step: str, since: dt.datetime, until: dt.datetime) -> list[dt.datetime]:
    at = since.replace(minute=0, second=0, microsecond=0)
    at = at.replace(hour=0) if step == "day" else at
    moments = []
    while at < until:
        moments.append(at)
        at += STEPS[step]
    return moments


def _moment(row: UsageTotal) -> dt.datetime:
    if row.day is not None:
        return dt.datetime.combine(row.day, dt.time(), dt.UTC)
    if row.hour is None:
        raise TypeError("rows of charts are summed by hour or day")
    return row.hour.astimezone(dt.UTC)


def _share(row: UsageTotal, split: str) -> str:
    if split == "key":
        return f"{row.key} ({row.key_id})"  # names of keys repeat
    return str(getattr(row, split)) if split else ""


def _label(moment: dt.datetime, step: str, period: dt.timedelta) -> str:
    if step == "day":
        return f"{moment:%b %d}"
    return f"{moment:%H}:00" if period <= dt.timedelta(days=1, hours=1) else f"{moment:%b %d, %H}:00"


def _set(
    name: str, moments: list[dt.datetime], rows: dict[dt.datetime, UsageTotal], value: Callable[[UsageTotal], float]
) -> dict[str, Any]:
    return {"label": name, "data": [value(rows[at]) if at in rows else 0 for at in moments]}


def _token_sorts(moments: list[dt.datetime], rows: dict[dt.datetime, UsageTotal]) -> list[dict[str, Any]]:
    """Without a split the tokens are drawn by what they are."""
    return [
        _set("prompt, computed", moments, rows, lambda row: row.prompt_tokens - row.cached_tokens),
        _set("prompt, from the cache", moments, rows, lambda row: row.cached_tokens),
        _set("completion", moments, rows, lambda row: row.completion_tokens),
    ]


def _first_token_ms(row: UsageTotal | None) -> float | None:
    """Mean; None when no request had a first token: a gap in the line."""
    served = row.requests - row.errors if row is not None else 0
    return round(row.ttft_ms / served) if row is not None and served and row.ttft_ms else None


# ------------------------------------------------------------------------------------------------ as a table


def _heads(split: str) -> tuple[str, ...]:
    share = (split.capitalize(),) if split else ()
    return ("When", *share, *(title for title, _ in MEASURES.values()), "First token (ms)")


def _table(
    found: dict[str, dict[dt.datetime, UsageTotal]],
    names: list[str],
    moments: list[dt.datetime],
    labels: list[str],
    split: str,
) -> tuple[tuple[str, ...], ...]:
    """Newest first; only what there was."""
    lines = []
    for moment, label in sorted(zip(moments, labels, strict=True), reverse=True):
        for name in names:
            row = found[name].get(moment)
            if row is None:
                continue
            first = _first_token_ms(row)
            sums = (f"{value(row):,}" for _, value in MEASURES.values())
            lines.append((label, *((name,) if split else ()), *sums, UNKNOWN if first is None else f"{first:,}"))
    return tuple(lines)
