"""Deployments that follow an alias: where the alias has moved, its version becomes a new revision.

Level-triggered: every look compares what each deployment serves with what its alias names, so that nothing is lost
when a process dies after an alias moved, and nothing happens twice: a revision is made under the deployment's lock,
and only when it differs from the one that is there.
"""

from __future__ import annotations

from datetime import datetime

import structlog
from django.db.models import F

from deployments import services
from deployments.errors import BeingDeleted, VersionConflict
from deployments.events import log_event
from deployments.models import Deployment, Event, Severity
from wire.errors import Problem

log = structlog.get_logger(__name__)

EVERY_S = 2.0
_REFUSED = "deployment.alias_refused"


def follow_aliases(now: datetime) -> int:
    """Give each deployment whose alias names another version than it serves a new revision. How many got one.

    What cannot be deployed is told once, as an event of the deployment, which stays as it is.
    """
    behind = Deployment.objects.filter(deleted_at__isnull=True, alias__isnull=False, revision__isnull=False)
    behind = behind.exclude(revision__model_version=F("alias__version")).order_by("id")
    moved = 0
    for deployment in behind.select_related("alias__model", "alias__version__model"):
        try:
            services.update_deployment(
                deployment, if_version=deployment.version, now=now, actor=_mover(deployment), alias=deployment.alias
            )
            moved += 1
        except (VersionConflict, BeingDeleted):
            continue  # somebody changed it just now: the next look sees what is left to do
        except Problem as error:
            _tell_refused(deployment, error, now)
    return moved


def _mover(deployment: Deployment) -> str:
    alias = deployment.alias
    return f"alias {alias}, moved by {alias.moved_by}" if alias.moved_by else f"alias {alias}"


def _tell_refused(deployment: Deployment, error: Problem, now: datetime) -> None:
    details = {"model_version": deployment.alias.version_id, "code": error.code, "message": error.message}
    last = Event.objects.filter(deployment=deployment, kind=_REFUSED).order_by("-at", "-id").first()
    if last is not None and last.details == details:
        return
    log_event(
        _REFUSED,
        f"{deployment.name} follows {deployment.alias}, but {deployment.alias.version} is not deployed: "
        f"{error.message}",
        severity=Severity.WARNING,
        remedy=error.remedy,
        details=details,
        deployment_id=deployment.pk,
        now=now,
    )
