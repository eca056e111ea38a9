"""Tells the model registry of projects: whose Hub tokens are whose."""

from __future__ import annotations

from typing import Any

from django.db.models.signals import post_delete

from apikeys.access import own_projects
from apikeys.models import Project
from models_registry import tenants


def projects_of(user: Any) -> dict[str, str]:
    """Every project for a superuser, else those that a person is a member of."""
    rows = Project.objects.all() if user.is_superuser else own_projects(user)
    return {str(pk): name for pk, name in rows.values_list("pk", "name")}


def start() -> None:
    tenants.tell(projects_of)
    post_delete.connect(_forget, sender=Project, dispatch_uid="monitoring.tenants")


def _forget(instance: Project, **_: object) -> None:
    tenants.forget_project(str(instance.pk))
