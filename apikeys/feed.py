"""What gateways must know of projects and keys. Asked every second: a constant number of queries."""

from __future__ import annotations

import datetime as dt

from apikeys import usage
from apikeys.checks import LIMIT_FIELDS
from apikeys.models import ApiKey, ModelQuota, Project
from apikeys.models import Limits as LimitsRow
from wire.feed import FeedKey, FeedProject, Guard, Limits, RequestLog, Used
from wire.feed import ModelQuota as WireModelQuota


def feed_projects(now: dt.datetime) -> tuple[FeedProject, ...]:
    """Every project as gateways need it, with what its keys used this UTC day and month."""
    used = usage.used_since(now)
    quotas: dict[object, list[WireModelQuota]] = {}
    for quota in ModelQuota.objects.order_by("model"):
        told = WireModelQuota(
            model=quota.model,
            limits=_wire_limits(quota),
            used=_wire_used(used.models.get((quota.project_id, quota.model), usage.NOTHING)),
        )
        quotas.setdefault(quota.project_id, []).append(told)
    return tuple(
        FeedProject(
            id=str(project.pk),
            name=project.name,
            active=project.active,
            limits=_wire_limits(project),
            used=_wire_used(used.projects.get(project.pk, usage.NOTHING)),
            model_quotas=tuple(quotas.get(project.pk, ())),
            priority=project.priority,
            guard=_guard(project),
            request_log=None
            if project.request_log_days is None
            else RequestLog(retention_days=project.request_log_days, redact=tuple(project.request_log_redact)),
        )
        for project in Project.objects.order_by("pk")
    )


def feed_keys(now: dt.datetime) -> tuple[FeedKey, ...]:
    """Every key as gateways need it; revoked ones too, so that a refusal can say why."""
    used = usage.used_since(now).keys
    return tuple(
        FeedKey(
            id=key.id,
            secret_hash=key.secret_hash,
            project_id=str(key.project_id),
            name=key.name,
            active=key.revoked_at is None,
            expires_at=key.expires_at.timestamp() if key.expires_at else None,
            models=tuple(key.allowed_models) if key.allowed_models else None,
            endpoints=tuple(key.allowed_endpoints) if key.allowed_endpoints else None,
            networks=tuple(key.allowed_networks or ()),
            limits=_wire_limits(key),
            used=_wire_used(used.get(key.id, usage.NOTHING)),
            previous_hash=key.previous_hash,
            previous_until=key.previous_until.timestamp() if key.previous_until else 0.0,
        )
        for key in ApiKey.objects.order_by("pk")
    )


def _guard(project: Project) -> Guard | None:
    if not project.guard_url:
        return None
    return Guard(url=project.guard_url, timeout_ms=project.guard_timeout_ms, fail_open=project.guard_fail_open)


def _wire_used(used: usage.UsedUp) -> Used:
    return Used(tokens_today=used.today, tokens_this_month=used.month, cost_this_month=used.cost)


def _wire_limits(row: LimitsRow) -> Limits:
    return Limits(**{field: getattr(row, field) for field in LIMIT_FIELDS})
