"""The usage page: what a person asked for in the address, and the sums that answer it."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import Any

from django.http import QueryDict

from apikeys import access, usage
from apikeys.forms import UsageFilter
from apikeys.usage_charts import Charts, charts

HOURS_UP_TO_DAYS = 2
"""Periods up to here are drawn by the hour when nobody chose; and none longer than MOST_DAYS_BY_HOUR ever is."""
MOST_DAYS_BY_HOUR = 14
_DEFAULTS = {"days": "7", "by": "day"}


@dataclass(frozen=True)
class Asked:
    """Filters of the page, checked."""

    form: UsageFilter
    by: str
    split: str
    step: str
    since: dt.datetime
    until: dt.datetime
    rows_of: dict[str, Any]
    """What narrows the sums: project, key, model; and the projects whose usage this person may see."""

    def totals(self, *by: str, latencies: bool = False) -> list[usage.UsageTotal]:
        return usage.totals(by=by, since=self.since, latencies=latencies, **self.rows_of)


def asked_of(user: Any, query: QueryDict, now: dt.datetime) -> Asked:
    """The filters in an address; what is missing or wrong there is as if it were not there."""
    form = UsageFilter(user, query or _DEFAULTS)
    chosen = form.cleaned_data if form.is_valid() else {}
    days = int(chosen.get("days") or _DEFAULTS["days"])
    step = chosen.get("step") or ("hour" if days <= HOURS_UP_TO_DAYS else "day")
    if days > MOST_DAYS_BY_HOUR:
        step = "day"
    since = (now - dt.timedelta(days=days)).replace(minute=0, second=0, microsecond=0)
    narrowed = {name: chosen.get(name) or None for name in ("project", "key", "model")}
    return Asked(
        form=form,
        by=chosen.get("by") or "day",
        split=chosen.get("split") or "",
        step=step,
        since=since if days == 1 else since.replace(hour=0),
        until=now,
        rows_of=narrowed | {"within": access.projects_with_visible_usage(user)},
    )


def page_context(asked: Asked, query: QueryDict) -> dict[str, Any]:
    """What `stokehold/usage.html` shows. Four queries for sums, whatever is asked."""
    rows = asked.totals(asked.by, latencies=True)
    drawn: Charts = charts(
        asked.totals(*filter(None, (asked.step, asked.split))),
        step=asked.step,
        split=asked.split,
        since=asked.since,
        until=asked.until,
    )
    csv = query.copy()
    csv["format"] = "csv"
    return {
        "form": asked.form,
        "rows": rows[::-1] if asked.by in ("day", "hour") else sorted(rows, key=lambda row: -row.total_tokens),
        "by": asked.by,
        "whole": asked.totals()[0],
        "charts": drawn,
        "series_json": json.dumps(drawn.series),
        "csv": f"?{csv.urlencode()}",
    }
