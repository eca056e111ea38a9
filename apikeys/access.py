"""Who sees which projects, keys and usage."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.db.models import F, QuerySet, Sum

from apikeys.models import ApiKey, Project, ProjectRole, UsageHour


def projects_for(user: Any) -> QuerySet[Project]:
    """Projects whose keys and usage a person may see: all with the permission, else those they are a member of."""
    if user.has_perm("apikeys.view_apikey"):
        return Project.objects.all()
    return Project.objects.filter(memberships__user=user).distinct()


def owned_by(user: Any) -> QuerySet[Project]:
    """Projects whose keys a person may make and revoke."""
    if user.has_perm("apikeys.add_apikey"):
        return Project.objects.all()
    return Project.objects.filter(memberships__user=user, memberships__role=ProjectRole.OWNER).distinct()


def keys_for(user: Any, rows: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
    if user.has_perm("apikeys.view_apikey"):
        return rows
    return rows.filter(project__in=projects_for(user))


def tokens_today(key_ids: list[str], now: dt.datetime) -> dict[str, int]:
    """Tokens of each key on the current UTC day. One query."""
    day = now.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = UsageHour.objects.filter(key_id__in=key_ids, hour__gte=day).order_by().values("key_id")
    return {
        row["key_id"]: row["total"] for row in rows.annotate(total=Sum(F("prompt_tokens") + F("completion_tokens")))
    }
