"""Projects, as far as Hub tokens have to know of them. Another app has them, and tells of them here (`tell`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.db.models import Q, QuerySet

from models_registry.models import HubToken

Projects = Callable[[Any], Mapping[str, str]]
"""Of a person: id and name of each project that is theirs; of a superuser: of every project."""

_projects: Projects = lambda user: {}  # noqa: E731 - until another app tells


def tell(projects: Projects) -> None:
    """Called once, when Django starts."""
    global _projects
    _projects = projects


def projects_of(user: Any) -> Mapping[str, str]:
    """Id and name of the projects that a person may keep tokens for."""
    return _projects(user)


def usable_tokens(user: Any) -> QuerySet[HubToken]:
    """Tokens that a person may see, use and forget: those of the installation, and of their own projects."""
    return HubToken.objects.filter(Q(project="") | Q(project__in=list(projects_of(user))))


def forget_project(project: str) -> None:
    """It is deleted, and its accounts' tokens with it."""
    for token in HubToken.objects.filter(project=project):
        token.delete()
