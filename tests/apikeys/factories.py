"""Projects, keys, people and usage as these tests need them."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

from django.contrib.auth.models import Permission, User
from rest_framework.test import APIClient

from apikeys import services
from apikeys.models import ApiKey, Project
from wire.feed import UsageBatch, UsageRow

NOW = dt.datetime(2026, 3, 5, 12, 30, tzinfo=dt.UTC)
HOUR = dt.datetime(2026, 3, 5, 12, tzinfo=dt.UTC)
_numbers = itertools.count(1)


def make_project(name: str = "", **fields: Any) -> Project:
    return services.create_project(name or f"project-{next(_numbers)}", **fields)


def make_key(project: Project | None = None, **fields: Any) -> ApiKey:
    values: dict[str, Any] = {"name": f"key-{next(_numbers)}", "now": NOW} | fields
    key, _ = services.create_key(project=project or make_project(), **values)
    return key


def make_row(key: ApiKey | str, **fields: Any) -> UsageRow:
    """One request of 10 prompt and 5 completion tokens."""
    at: dt.datetime = fields.pop("at", HOUR)
    values: dict[str, Any] = {
        "hour": int(at.timestamp()),
        "project_id": str(key.project_id) if isinstance(key, ApiKey) else "gone",
        "key_id": key.pk if isinstance(key, ApiKey) else key,
        "model": "chat",
        "status": 200,
        "requests": 1,
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "completion_tokens": 5,
        "duration_ms": 100,
        "ttft_ms": 20,
    }
    return UsageRow(**(values | fields))


def make_batch(*rows: UsageRow, batch_id: str = "") -> UsageBatch:
    return UsageBatch(batch_id=batch_id or f"batch-{next(_numbers)}", rows=rows)


def make_user(*permissions: str, staff: bool = False) -> User:
    user = User.objects.create_user(f"user-{next(_numbers)}", is_staff=staff)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def client_of(user: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(user)
    return client


def make_admin() -> User:
    """A person who may do everything with projects and keys, without being a superuser."""
    models = ("project", "apikey", "membership", "usagehour")
    return make_user(
        *(f"{verb}_{model}" for verb in ("view", "add", "change", "delete") for model in models), staff=True
    )
