"""The installation's bandwidth schedule: read by every fetch twice a second, so a change holds at once."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import structlog
from django.db import transaction

from models_registry.errors import BadSchedule
from models_registry.fetching.schedule import parse
from models_registry.models import DownloadPolicy

log = structlog.get_logger(__name__)
_ONLY = 1


def policy() -> DownloadPolicy:
    """The one there is, or what holds without one."""
    return DownloadPolicy.objects.filter(pk=_ONLY).first() or DownloadPolicy(pk=_ONLY)


def set_policy(schedule: str, zone: str = "UTC") -> DownloadPolicy:
    """From now on. `schedule` as `fetching.schedule` reads it. Raises BadSchedule."""
    schedule, zone = " ".join(schedule.split()), zone.strip() or "UTC"
    parse(schedule)
    _zone(zone)
    with transaction.atomic():
        row, _ = DownloadPolicy.objects.update_or_create(pk=_ONLY, defaults={"schedule": schedule, "zone": zone})
    log.info("download_policy.set", schedule=schedule, zone=zone)
    return row


def limit_at(now: dt.datetime) -> float | None:
    """Bytes a second for all fetches together at this instant; None: as fast as it goes."""
    row = policy()
    return parse(row.schedule).rate_at(now.astimezone(_zone(row.zone))) if row.schedule else None


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # not there, or no name at all
        raise BadSchedule(f"{name!r} is no time zone.", remedy="Give a name such as Europe/Berlin, or UTC.") from error
