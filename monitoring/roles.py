"""Groups viewer, operator and admin with their model permissions; made again after every migrate."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Group, Permission
from django.db.models import Q

_ADMINISTRATORS_ONLY = ("allow_pickle",)  # what lets a file run code on servers
_SEEN = ("fleet", "models_registry", "deployments", "apikeys", "monitoring")
_OPERATED = ("fleet", "models_registry", "deployments", "apikeys")
_ADMINISTERED = (*_OPERATED, "monitoring", "auth", "auditlog", "axes", "django_celery_beat", "django_celery_results")


def ensure_roles(**_: Any) -> None:
    """Idempotent. Permissions that an operator of this installation added to a group stay."""
    viewer = Q(content_type__app_label__in=_SEEN, codename__startswith="view_")
    operator = viewer | Q(content_type__app_label__in=_OPERATED) & ~Q(codename__in=_ADMINISTRATORS_ONLY)
    administrator = Q(content_type__app_label__in=_ADMINISTERED)
    for name, wanted in (("viewer", viewer), ("operator", operator), ("admin", administrator)):
        group, _made = Group.objects.get_or_create(name=name)
        group.permissions.add(*Permission.objects.filter(wanted))
