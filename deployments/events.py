"""Events: what happened to deployments, instances and servers, in sentences."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import structlog

from deployments.models import Event, Severity

log = structlog.get_logger(__name__)


def log_event(
    kind: str,
    message: str,
    *,
    now: datetime,
    severity: Severity = Severity.INFO,
    remedy: str = "",
    details: dict[str, Any] | None = None,
    deployment_id: int | None = None,
    instance_id: str | None = None,
    server_id: str | None = None,
) -> Event:
    """Store one event and write it to the log."""
    event = Event.objects.create(
        at=now,
        kind=kind,
        severity=severity,
        message=message,
        remedy=remedy,
        details=details or {},
        deployment_id=deployment_id,
        instance_id=instance_id,
        server_id=server_id,
    )
    write = {Severity.INFO: log.info, Severity.WARNING: log.warning, Severity.ERROR: log.error}[severity]
    write(kind, message=message, deployment=deployment_id, instance=instance_id, server=server_id)
    return event
