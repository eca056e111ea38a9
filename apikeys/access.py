"""Who sees and changes which projects, members, keys and usage.

| | staff with the model's permission | owner | member | anybody else |
| --- | --- | --- | --- | --- |
| see a project, its members, keys and usage | all | own | own | nothing |
| make, change and revoke keys | all | own | - | - |
| choose members | all (`change_project`) | own | - | - |
| make, change (its limits!) and delete a project | all | - | - | - |

A superuser of the staff has every permission.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.db.models import F, QuerySet, Sum

from apikeys.models import ApiKey, Membership, Project, ProjectRole, UsageHour


def has_staff_permission(user: Any, codename: str) -> bool:
    """Whether a person of the staff has a permission of this app, e.g. `add_project`."""
    return bool(user.is_staff and user.has_perm(f"apikeys.{codename}"))


def visible_projects(user: Any) -> QuerySet[Project]:
    """Projects that a person may see."""
    return _all_or_own(user, "view_project")


def visible_keys(user: Any, rows: QuerySet[ApiKey] | None = None) -> QuerySet[ApiKey]:
    """Keys (of `rows`) that a person may see, without their secrets."""
    rows = ApiKey.objects.all() if rows is None else rows
    if has_staff_permission(user, "view_apikey"):
        return rows
    return rows.filter(project__in=own_projects(user))


def projects_with_visible_usage(user: Any) -> QuerySet[Project]:
    """Projects whose usage a person may see."""
    return _all_or_own(user, "view_usagehour")


def projects_to_make_keys_in(user: Any) -> QuerySet[Project]:
    """Projects in which a person may make keys."""
    return Project.objects.all() if has_staff_permission(user, "add_apikey") else own_projects(user, ProjectRole.OWNER)


def may_change_keys(user: Any, project: Project, codename: str = "change_apikey") -> bool:
    """Staff with the permission, and owners of the project."""
    return has_staff_permission(user, codename) or _owns(user, project)


def may_change_members(user: Any, project: Project) -> bool:
    """Staff that may change projects, and owners of the project: whoever makes an owner hands out all its keys."""
    return has_staff_permission(user, "change_project") or _owns(user, project)


def _all_or_own(user: Any, codename: str) -> QuerySet[Project]:
    return Project.objects.all() if has_staff_permission(user, codename) else own_projects(user)


def own_projects(user: Any, *roles: str) -> QuerySet[Project]:
    """Projects that a person is a member of, in one of `roles` when some are given."""
    mine = Membership.objects.filter(user=user)
    mine = mine.filter(role__in=roles) if roles else mine
    return Project.objects.filter(pk__in=mine.values("project"))


def _owns(user: Any, project: Project) -> bool:
    return own_projects(user, ProjectRole.OWNER).filter(pk=project.pk).exists()


def tokens_today(key_ids: list[str], now: dt.datetime) -> dict[str, int]:
    """Tokens of each key on the current UTC day. One query."""
    day = now.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = UsageHour.objects.filter(key_id__in=key_ids, hour__gte=day).order_by().values("key_id")
    return {
        row["key_id"]: row["total"] for row in rows.annotate(total=Sum(F("prompt_tokens") + F("completion_tokens")))
    }
