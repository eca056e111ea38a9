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


def has_staff_permission(user: Any, codename: str) -> bool:
    """Whether a person of the staff has a permission of this app, e.g. `add_project`."""
    return bool(user.is_staff and user.has_perm(f"apikeys.{codename}"))


def visible_projects(user: Any) -> QuerySet[Project]:
    """Projects that a person may see: all with the permission, else those they are a member of."""
    return _all_or_own(user, "view_project")


def visible_keys(user: Any) -> QuerySet[ApiKey]:
    """Keys that a person may see, without their secrets."""
    return ApiKey.objects.filter(project__in=_all_or_own(user, "view_apikey"))


def projects_with_visible_usage(user: Any) -> QuerySet[Project]:
    """Projects whose usage a person may see."""
    return _all_or_own(user, "view_usagehour")


def may_change_keys(user: Any, project: Project, codename: str = "change_apikey") -> bool:
    """Staff with the permission, and owners of the project."""
    return has_staff_permission(user, codename) or _owns(user, project)


def may_change_members(user: Any, project: Project) -> bool:
    """Staff that may change projects, and owners of the project."""
    return has_staff_permission(user, "change_project") or _owns(user, project)


def _all_or_own(user: Any, codename: str) -> QuerySet[Project]:
    if has_staff_permission(user, codename):
        return Project.objects.all()
    return Project.objects.filter(memberships__user=user).distinct()


def _owns(user: Any, project: Project) -> bool:
    return project.memberships.filter(user=user, role=ProjectRole.OWNER).exists()


def tokens_today(key_ids: list[str], now: dt.datetime) -> dict[str, int]:
    """Tokens of each key on the current UTC day. One query."""
    day = now.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = UsageHour.objects.filter(key_id__in=key_ids, hour__gte=day).order_by().values("key_id")
    return {
        row["key_id"]: row["total"] for row in rows.annotate(total=Sum(F("prompt_tokens") + F("completion_tokens")))
    }
