"""Warnings before a limit of a day or month is reached: at 80 and at 100 %, once each."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import structlog

from apikeys import usage
from apikeys.models import ApiKey, Limits, ModelQuota, Project, QuotaWarning

log = structlog.get_logger(__name__)

PERCENTS = (80, 100)


def warn(now: dt.datetime) -> list[QuotaWarning]:
    """Note every limit that has been used up to a share since the last call; the new warnings. Five queries."""
    used = usage.used_since(now)
    if not used.keys:
        return []
    due = list(_due(used, now))
    month = now.astimezone(dt.UTC).date().replace(day=1)
    known = set(
        QuotaWarning.objects.filter(period__gte=month).values_list("project", "subject", "limit", "period", "percent")
    )
    fresh = [one for one in due if (one.project_id, one.subject, one.limit, one.period, one.percent) not in known]
    QuotaWarning.objects.bulk_create(fresh, ignore_conflicts=True, batch_size=100)  # another worker may have been first
    for one in fresh:
        log.warning(
            "quota.warning",
            project=str(one.project_id),
            subject=one.subject,
            limit=one.limit,
            percent=one.percent,
            used=one.shown(one.used),
            allowed=one.shown(one.allowed),
        )
    return fresh


def _due(used: usage.UsedBy, now: dt.datetime) -> Iterator[QuotaWarning]:
    for project in Project.objects.filter(pk__in=used.projects):
        yield from _of(project, project.pk, "project", used.projects[project.pk], now)
    for key in ApiKey.objects.filter(pk__in=used.keys, revoked_at__isnull=True):
        yield from _of(key, key.project_id, f"key {key.pk}", used.keys[key.pk], now)
    for quota in ModelQuota.objects.filter(project__in=used.projects):
        spent = used.models.get((quota.project_id, quota.model), usage.NOTHING)
        yield from _of(quota, quota.project_id, f"model {quota.model}", spent, now)


def _of(
    limits: Limits, project_id: object, subject: str, used: usage.UsedUp, now: dt.datetime
) -> Iterator[QuotaWarning]:
    today = now.astimezone(dt.UTC).date()
    for limit, period, spent in (
        ("tokens_per_day", today, used.today),
        ("tokens_per_month", today.replace(day=1), used.month),
        ("cost_per_month", today.replace(day=1), used.cost),
    ):
        allowed = getattr(limits, limit)
        for percent in PERCENTS:
            if allowed is not None and spent * 100 >= allowed * percent:
                yield QuotaWarning(
                    project_id=project_id,
                    subject=subject,
                    limit=limit,
                    period=period,
                    percent=percent,
                    used=spent,
                    allowed=allowed,
                    at=now,
                )
