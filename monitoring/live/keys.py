"""Fragments of keys and usage, narrowed to what the person may see."""

from __future__ import annotations

from typing import Any

from apikeys.access import projects_with_visible_usage, tokens_today, visible_keys
from apikeys.models import UsageHour
from monitoring.live.parts import cells, list_digest

KEY_CELLS = ("status", "used", "today")


def render_keys(ask: Any) -> dict[str, str]:
    mine = visible_keys(ask.user)
    found = list_digest(mine)
    rows = list(mine.filter(pk__in=ask.pks).select_related("project"))
    today = tokens_today([row.pk for row in rows], ask.now)
    for row in rows:
        found |= cells("key", KEY_CELLS, row, today=today.get(row.pk), now=ask.now)
    return found


def render_usage(ask: Any) -> dict[str, str]:
    """The page reads itself again when a request was accounted: its filters are in its own address."""
    rows = UsageHour.objects.filter(project__in=projects_with_visible_usage(ask.user))
    return _requests(rows)


def _requests(rows: Any) -> dict[str, str]:
    from django.db.models import Sum

    total = rows.order_by().aggregate(total=Sum("requests"), tokens=Sum("completion_tokens"))
    return {"list:digest": f"{total['total'] or 0}-{total['tokens'] or 0}"}
