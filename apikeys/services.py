"""Verbs of projects and keys. Every change ends in a `keys_changed` hint after commit."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import secrets
import string
from collections.abc import Sequence
from typing import Any

import structlog
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction

from apikeys import usage
from apikeys.errors import (
    InvalidExpiry,
    InvalidLimits,
    InvalidModels,
    InvalidName,
    KeyRevoked,
    NameTaken,
    ProjectInUse,
    ProjectOff,
)
from apikeys.models import ApiKey, Membership, Project, ProjectRole, UsageHour
from apikeys.signals import keys_changed
from wire.feed import FeedKey, FeedProject, Limits, Used

log = structlog.get_logger(__name__)

LIMIT_FIELDS = (
    "requests_per_minute",
    "tokens_per_minute",
    "parallel_requests",
    "tokens_per_day",
    "tokens_per_month",
)
_SMALL_LIMITS = ("requests_per_minute", "parallel_requests")  # 32-bit columns
_ID_ALPHABET = string.ascii_lowercase + string.digits
_SECRET_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH, _SECRET_LENGTH = 8, 43


# ------------------------------------------------------------------------------------------------ projects


def create_project(name: str, *, description: str = "", active: bool = True, **limits: int | None) -> Project:
    """Raises InvalidName, NameTaken, InvalidLimits."""
    project = Project(name=_checked_name(name), description=description, active=active, **_checked_limits(limits))
    _save_project(project, None)
    log.info("project.created", project=str(project.pk), name=project.name)
    return project


def update_project(project: Project, **changes: Any) -> Project:
    """Change `name`, `description`, `active` and limits. Raises InvalidName, NameTaken, InvalidLimits."""
    limits = {field: changes.pop(field) for field in LIMIT_FIELDS if field in changes}
    values: dict[str, Any] = _checked_limits(limits)
    if "name" in changes:
        values["name"] = _checked_name(changes.pop("name"))
    values |= {field: changes.pop(field) for field in ("description", "active") if field in changes}
    if changes:
        raise TypeError(f"not a field of a project: {', '.join(changes)}")
    for field, value in values.items():
        setattr(project, field, value)
    _save_project(project, [*values, "updated_at"])  # no other: somebody else may have changed it meanwhile
    log.info("project.changed", project=str(project.pk), active=project.active)
    return project


def delete_project(project: Project) -> None:
    """Remove a project that was never used, with its keys. Raises ProjectInUse when there is usage on record."""
    with transaction.atomic():
        if UsageHour.objects.filter(project=project).exists():
            raise ProjectInUse(f"Project {project.name!r} has usage on record and cannot be deleted.")
        project_id = str(project.pk)
        project.delete()
        _hint_after_commit()
    log.info("project.deleted", project=project_id)


def set_member(project: Project, user: AbstractBaseUser, role: str = ProjectRole.MEMBER) -> Membership:
    """Give a person a role in a project, in place of the one held before."""
    membership, _ = Membership.objects.update_or_create(
        project=project, user=user, defaults={"role": ProjectRole(role).value}
    )
    log.info("project.member_set", project=str(project.pk), user=user.pk, role=membership.role)
    return membership


def remove_member(membership: Membership) -> None:
    project_id, user_id = str(membership.project_id), membership.user_id
    membership.delete()
    log.info("project.member_removed", project=project_id, user=user_id)


# ------------------------------------------------------------------------------------------------ keys


def create_key(
    *,
    project: Project,
    name: str,
    allowed_models: Sequence[str] | None = None,
    expires_at: dt.datetime | None = None,
    actor: str = "",
    now: dt.datetime,
    **limits: int | None,
) -> tuple[ApiKey, str]:
    """A new key and its whole text, which exists nowhere else from then on.

    Raises InvalidName, InvalidModels, InvalidExpiry, InvalidLimits, ProjectOff.
    """
    if not project.active:
        raise ProjectOff(f"Project {project.name!r} is switched off.")
    key = ApiKey(
        project=project,
        name=_checked_name(name),
        allowed_models=_checked_models(allowed_models),
        expires_at=_checked_expiry(expires_at, now),
        created_by=actor[:150],
        **_checked_limits(limits),
    )
    with transaction.atomic():
        key.id = _unused_id()
        text = f"sk-stk-{key.id}-{_random(_SECRET_ALPHABET, _SECRET_LENGTH)}"
        key.secret_hash = hash_key(text)
        key.save(force_insert=True)
        _hint_after_commit()
    log.info("key.created", key=key.id, project=str(project.pk), actor=actor)
    return key, text


def update_key(key: ApiKey, *, now: dt.datetime, **changes: Any) -> ApiKey:
    """Change `name`, `allowed_models`, `expires_at` and limits of a key.

    Raises KeyRevoked, InvalidName, InvalidModels, InvalidExpiry, InvalidLimits.
    """
    if key.revoked_at is not None:
        raise KeyRevoked(f"Key {key.prefix} is revoked.")
    limits = {field: changes.pop(field) for field in LIMIT_FIELDS if field in changes}
    values: dict[str, Any] = _checked_limits(limits)
    if "name" in changes:
        values["name"] = _checked_name(changes.pop("name"))
    if "allowed_models" in changes:
        values["allowed_models"] = _checked_models(changes.pop("allowed_models"))
    if "expires_at" in changes:
        expires_at = changes.pop("expires_at")
        values["expires_at"] = expires_at if expires_at == key.expires_at else _checked_expiry(expires_at, now)
    if changes:
        raise TypeError(f"not a field of a key: {', '.join(changes)}")
    for field, value in values.items():
        setattr(key, field, value)
    with transaction.atomic():
        key.save(update_fields=[*values, "updated_at"])
        _hint_after_commit()
    log.info("key.changed", key=key.id, fields=sorted(values))
    return key


def revoke_key(key: ApiKey, now: dt.datetime, *, actor: str = "") -> ApiKey:
    """Refuse a key from now on, for good. A second call changes nothing."""
    key.refresh_from_db()
    if key.revoked_at is not None:
        return key
    key.revoked_at = now
    with transaction.atomic():
        key.save(update_fields=["revoked_at", "updated_at"])
        _hint_after_commit()
    log.info("key.revoked", key=key.id, actor=actor)
    return key


def hash_key(text: str) -> str:
    """Hex HMAC-SHA256 of a whole key under this installation's pepper: all that is kept of it."""
    return hmac.new(bytes.fromhex(settings.KEY_PEPPER), text.encode(), hashlib.sha256).hexdigest()


# ------------------------------------------------------------------------------------------------ feed of gateways


def feed_projects(now: dt.datetime) -> tuple[FeedProject, ...]:
    """Every project as gateways need it, with what its keys used this UTC day and month."""
    used = usage.tokens_since(now).projects
    return tuple(
        FeedProject(
            id=str(project.pk),
            name=project.name,
            active=project.active,
            limits=_wire_limits(project),
            used=_wire_used(used.get(project.pk, usage.NOTHING)),
        )
        for project in Project.objects.order_by("pk")
    )


def feed_keys(now: dt.datetime) -> tuple[FeedKey, ...]:
    """Every key as gateways need it; revoked ones too, so that a refusal can say why."""
    used = usage.tokens_since(now).keys
    return tuple(
        FeedKey(
            id=key.id,
            secret_hash=key.secret_hash,
            project_id=str(key.project_id),
            name=key.name,
            active=key.revoked_at is None,
            expires_at=key.expires_at.timestamp() if key.expires_at else None,
            models=tuple(key.allowed_models) if key.allowed_models else None,
            limits=_wire_limits(key),
            used=_wire_used(used.get(key.id, usage.NOTHING)),
        )
        for key in ApiKey.objects.order_by("pk")
    )


# ------------------------------------------------------------------------------------------------ checks


def _wire_used(tokens: usage.Tokens) -> Used:
    return Used(tokens_today=tokens.today, tokens_this_month=tokens.month)


def _wire_limits(row: Project | ApiKey) -> Limits:
    return Limits(**{field: getattr(row, field) for field in LIMIT_FIELDS})


def _checked_name(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise InvalidName("The name must have 1 to 80 printable characters.")
    return name


def _checked_limits(limits: dict[str, Any]) -> dict[str, int | None]:
    for field, value in limits.items():
        if field not in LIMIT_FIELDS:
            raise TypeError(f"not a limit: {field}")
        if value is None:
            continue
        largest = 2**31 - 1 if field in _SMALL_LIMITS else 2**63 - 1
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise InvalidLimits(f"{field} must be a whole number from 1 to {largest}, or empty.")
    return limits


def _checked_models(models: Sequence[str] | None) -> list[str] | None:
    if not models:
        return None
    if isinstance(models, str) or not all(isinstance(name, str) for name in models):
        raise InvalidModels("The allowed models must be a list of names.")
    names = list(dict.fromkeys(name.strip() for name in models))
    if not all(1 <= len(name) <= 120 for name in names) or len(names) > 1000:
        raise InvalidModels("The allowed models hold an empty or too long name.")
    return names


def _checked_expiry(expires_at: dt.datetime | None, now: dt.datetime) -> dt.datetime | None:
    if expires_at is None:
        return None
    if expires_at.tzinfo is None:
        raise InvalidExpiry("The expiry needs a time zone.")
    if expires_at <= now:
        raise InvalidExpiry(f"The expiry {expires_at.isoformat()} has passed already.")
    return expires_at


def _save_project(project: Project, fields: list[str] | None) -> None:
    try:
        with transaction.atomic():
            project.save(update_fields=fields)
            _hint_after_commit()
    except IntegrityError as error:
        if Project.objects.filter(name=project.name).exclude(pk=project.pk).exists():
            raise NameTaken(f"There is a project {project.name!r} already.") from error
        raise


def _unused_id() -> str:
    while True:
        key_id = _random(_ID_ALPHABET, _ID_LENGTH)
        if not ApiKey.objects.filter(pk=key_id).exists():
            return key_id


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _hint_after_commit() -> None:
    transaction.on_commit(lambda: keys_changed.send(sender=None))
