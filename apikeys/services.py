"""Verbs of projects and keys. Every change ends in a `keys_changed` hint after commit."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import secrets
import string
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction

from apikeys.checks import (
    LIMIT_FIELDS,
    checked_endpoints,
    checked_expiry,
    checked_guard_timeout,
    checked_guard_url,
    checked_limits,
    checked_log_days,
    checked_model,
    checked_models,
    checked_name,
    checked_networks,
    checked_overlap,
    checked_patterns,
    checked_priority,
    checked_service,
)
from apikeys.errors import KeyRevoked, NameTaken, ProjectGone, ProjectInUse, ProjectOff
from apikeys.feed import feed_keys, feed_projects
from apikeys.models import ApiKey, Membership, ModelQuota, Project, ProjectRole, UsageHour
from apikeys.signals import keys_changed

__all__ = ["LIMIT_FIELDS", "feed_keys", "feed_projects"]

log = structlog.get_logger(__name__)

_ID_ALPHABET = string.ascii_lowercase + string.digits
_SECRET_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH, _SECRET_LENGTH = 8, 43
_PROJECT_CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": checked_name,
    "priority": checked_priority,
    "request_log_days": checked_log_days,
    "request_log_redact": checked_patterns,
    "guard_url": checked_guard_url,
    "guard_timeout_ms": checked_guard_timeout,
    "guard_fail_open": bool,
    "description": str,
    "active": bool,
}
_KEY_CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": checked_name,
    "allowed_models": checked_models,
    "allowed_endpoints": checked_endpoints,
    "allowed_networks": checked_networks,
    "service": checked_service,
}


# ------------------------------------------------------------------------------------------------ projects


def create_project(name: str, **settings: Any) -> Project:
    """`settings`: as for `update_project`, and limits. Raises InvalidName, NameTaken, InvalidLimits, InvalidRequestLog,
    InvalidGuard."""
    project = Project(**_checked_project({"name": name, **settings}))
    _save_project(project, None)
    log.info("project.created", project=str(project.pk), name=project.name)
    return project


def update_project(project: Project, **changes: Any) -> Project:
    """Change any of `name`, `description`, `active`, `priority`, `request_log_days`, `request_log_redact`, `guard_url`,
    `guard_timeout_ms`, `guard_fail_open` and limits.

    Raises InvalidName, NameTaken, InvalidLimits, InvalidRequestLog, InvalidGuard.
    """
    values = _checked_project(changes)
    for field, value in values.items():
        setattr(project, field, value)
    _save_project(project, [*values, "updated_at"])  # no other: somebody else may have changed it meanwhile
    log.info("project.changed", project=str(project.pk), active=project.active)
    return project


def _checked_project(changes: dict[str, Any]) -> dict[str, Any]:
    limits = {field: changes.pop(field) for field in LIMIT_FIELDS if field in changes}
    values: dict[str, Any] = checked_limits(limits)
    for field, checked in _PROJECT_CHECKS.items():
        if field in changes:
            values[field] = checked(changes.pop(field))
    if changes:
        raise TypeError(f"not a field of a project: {', '.join(changes)}")
    return values


def delete_project(project: Project) -> None:
    """Remove a project that was never used, with its keys. Raises ProjectInUse when there is usage on record."""
    with transaction.atomic():
        if UsageHour.objects.filter(project=project).exists():
            raise ProjectInUse(f"Project {project.name!r} has usage on record and cannot be deleted.")
        project_id = str(project.pk)
        project.delete()
        _hint_after_commit()
    log.info("project.deleted", project=project_id)


def set_model_quota(project: Project, model: str, **limits: int | None) -> ModelQuota:
    """Limit a project's use of one model, in place of the limits it had. Raises InvalidModels, InvalidLimits."""
    values = {**dict.fromkeys(LIMIT_FIELDS), **checked_limits(limits)}
    name = checked_model(model)
    try:
        with transaction.atomic():
            quota, _ = ModelQuota.objects.update_or_create(project=project, model=name, defaults=values)
            _hint_after_commit()
    except IntegrityError as error:
        raise ProjectGone(f"Project {project.name!r} is gone.") from error
    log.info("project.model_quota_set", project=str(project.pk), model=name)
    return quota


def remove_model_quota(quota: ModelQuota) -> None:
    """The model is limited for the project by its own limits only, from now on."""
    project_id, model = str(quota.project_id), quota.model
    with transaction.atomic():
        quota.delete()
        _hint_after_commit()
    log.info("project.model_quota_removed", project=project_id, model=model)


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
    allowed_endpoints: Sequence[str] | None = None,
    allowed_networks: Sequence[str] | None = None,
    service: str = "",
    expires_at: dt.datetime | None = None,
    actor: str = "",
    now: dt.datetime,
    **limits: int | None,
) -> tuple[ApiKey, str]:
    """A new key and its whole text, which exists nowhere else from then on.

    `service` names the program that a key belongs to which is no person's. Raises InvalidName, InvalidModels,
    InvalidEndpoints, InvalidNetworks, InvalidExpiry, InvalidLimits, ProjectOff, ProjectGone.
    """
    if not project.active:
        raise ProjectOff(f"Project {project.name!r} is switched off.")
    key = ApiKey(
        project=project,
        name=checked_name(name),
        allowed_models=checked_models(allowed_models),
        allowed_endpoints=checked_endpoints(allowed_endpoints),
        allowed_networks=checked_networks(allowed_networks),
        service=checked_service(service),
        expires_at=checked_expiry(expires_at, now),
        created_by=actor[:150],
        **checked_limits(limits),
    )
    key.id = _unused_id()
    text = _new_text(key)
    key.secret_hash = hash_key(text)
    try:
        with transaction.atomic():
            key.save(force_insert=True)
            _hint_after_commit()
    except IntegrityError as error:
        if not Project.objects.filter(pk=project.pk).exists():
            raise ProjectGone(f"Project {project.name!r} is gone.") from error
        raise
    log.info("key.created", key=key.id, project=str(project.pk), actor=actor)
    return key, text


def update_key(key: ApiKey, *, now: dt.datetime, **changes: Any) -> ApiKey:
    """Change `name`, `allowed_models`, `allowed_endpoints`, `allowed_networks`, `service`, `expires_at` and limits.

    Raises KeyRevoked, InvalidName, InvalidModels, InvalidEndpoints, InvalidNetworks, InvalidExpiry, InvalidLimits.
    """
    if key.revoked_at is not None:
        raise KeyRevoked(f"Key {key.prefix} is revoked.")
    limits = {field: changes.pop(field) for field in LIMIT_FIELDS if field in changes}
    values: dict[str, Any] = checked_limits(limits)
    for field, checked in _KEY_CHECKS.items():
        if field in changes:
            values[field] = checked(changes.pop(field))
    if "expires_at" in changes:
        expires_at = changes.pop("expires_at")
        values["expires_at"] = expires_at if expires_at == key.expires_at else checked_expiry(expires_at, now)
    if changes:
        raise TypeError(f"not a field of a key: {', '.join(changes)}")
    for field, value in values.items():
        setattr(key, field, value)
    with transaction.atomic():
        key.save(update_fields=[*values, "updated_at"])
        _hint_after_commit()
    log.info("key.changed", key=key.id, fields=sorted(values))
    return key


def rotate_key(key: ApiKey, *, overlap: dt.timedelta, now: dt.datetime, actor: str = "") -> str:
    """A new secret for a key that keeps its id, limits and usage. Returns the whole new key, kept nowhere.

    The secret before stays good for `overlap`; one from an earlier rotation ends at once. Raises KeyRevoked,
    InvalidExpiry.
    """
    until = now + checked_overlap(overlap)
    with transaction.atomic():
        held = ApiKey.objects.select_for_update(of=("self",)).get(pk=key.pk)  # two at once: one after the other
        if held.revoked_at is not None:
            raise KeyRevoked(f"Key {held.prefix} is revoked.")
        text = _new_text(held)
        keeps = overlap > dt.timedelta()
        key.previous_hash, key.previous_until = (held.secret_hash, until) if keeps else ("", None)
        key.secret_hash, key.rotated_at = hash_key(text), now
        key.save(update_fields=["secret_hash", "previous_hash", "previous_until", "rotated_at", "updated_at"])
        _hint_after_commit()
    log.info("key.rotated", key=key.id, overlap_s=overlap.total_seconds(), actor=actor)
    return text


def revoke_key(key: ApiKey, now: dt.datetime, *, actor: str = "") -> ApiKey:
    """Refuse a key from now on, for good. A second call changes nothing."""
    key.refresh_from_db()
    if key.revoked_at is not None:
        return key
    key.revoked_at, key.previous_hash, key.previous_until = now, "", None
    with transaction.atomic():
        key.save(update_fields=["revoked_at", "previous_hash", "previous_until", "updated_at"])
        _hint_after_commit()
    log.info("key.revoked", key=key.id, actor=actor)
    return key


def hash_key(text: str) -> str:
    """Hex HMAC-SHA256 of a whole key under this installation's pepper: all that is kept of it."""
    return hmac.new(bytes.fromhex(settings.KEY_PEPPER), text.encode(), hashlib.sha256).hexdigest()


# ------------------------------------------------------------------------------------------------ parts


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


def _new_text(key: ApiKey) -> str:
    return f"sk-stk-{key.id}-{_random(_SECRET_ALPHABET, _SECRET_LENGTH)}"


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _hint_after_commit() -> None:
    transaction.on_commit(lambda: keys_changed.send(sender=None))
