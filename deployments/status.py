"""How deployments are doing: derived from their instances and the age of what was seen, never stamped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from django.db.models import QuerySet

from deployments.models import Deployment, Instance, Phase
from wire.messages import InstanceState

_FAILING = {InstanceState.FAILED.value, InstanceState.BACKOFF.value}


class DeploymentState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"  # some ready, fewer than wanted
    UPDATING = "updating"  # an older revision still serves
    STOPPING = "stopping"
    FAILED = "failed"
    UNPLACEABLE = "unplaceable"


@dataclass(frozen=True)
class DeploymentStatus:
    """`ready` of `desired` instances serve; `reason` says why it is not what it should be."""

    state: DeploymentState
    ready: int
    desired: int
    reason: str = ""


def status_of(deployment: Deployment) -> DeploymentStatus:
    """One query. For many use `statuses`."""
    return statuses([deployment])[deployment.pk]


def statuses(deployments: QuerySet[Deployment] | Iterable[Deployment]) -> dict[int, DeploymentStatus]:
    """Status by primary key; one query for the instances of all."""
    rows = list(deployments)
    found = (
        Instance.objects.filter(deployment__in=[row.pk for row in rows])
        .exclude(phase=Phase.ENDED)
        .order_by("created_at")
        .values(
            "deployment_id",
            "revision_id",
            "phase",
            "state",
            "reason",
            "server__name",
            "server__revoked_at",
            "server__state__lost_at",
            "server__state__rejected",
        )
    )
    by_deployment: dict[int, list[dict]] = defaultdict(list)
    for instance in found:
        by_deployment[instance["deployment_id"]].append(instance)
    return {row.pk: _derive(row, by_deployment[row.pk]) for row in rows}


def _derive(deployment: Deployment, instances: list[dict]) -> DeploymentStatus:
    wanted = deployment.replicas if deployment.running and deployment.deleted_at is None else 0
    runs = [row for row in instances if row["phase"] == Phase.RUN]
    current = [row for row in runs if row["revision_id"] == deployment.revision_id]
    ready = sum(_is_ready(row) for row in runs)
    ready_current = sum(_is_ready(row) for row in current)
    if wanted == 0:
        return _going_down(deployment, instances, ready)
    if len(runs) > len(current):
        return DeploymentStatus(DeploymentState.UPDATING, ready, wanted, deployment.explanation or _waiting(current))
    if ready_current >= wanted:
        return DeploymentStatus(DeploymentState.READY, ready, wanted, deployment.explanation)
    reason = deployment.explanation or _waiting(current)
    if ready:
        return DeploymentStatus(DeploymentState.DEGRADED, ready, wanted, reason)
    if not runs and (deployment.refusals or (deployment.explanation and not instances)):
        return DeploymentStatus(DeploymentState.UNPLACEABLE, 0, wanted, reason)
    if current and all(row["state"] in _FAILING or _is_away(row) for row in current):
        return DeploymentStatus(DeploymentState.FAILED, 0, wanted, _waiting(current) or reason)
    return DeploymentStatus(DeploymentState.STARTING, 0, wanted, reason or "waiting for the controller to place it")


def _going_down(deployment: Deployment, instances: list[dict], ready: int) -> DeploymentStatus:
    if instances:
        what = "being deleted" if deployment.deleted_at else "being stopped"
        left = ", ".join(sorted({row["server__name"] or "a removed server" for row in instances}))
        refusing = sorted({_refusing(row) for row in instances if row["server__state__rejected"]})
        reason = "; ".join([f"{what}: {len(instances)} left on {left}", *refusing])
        return DeploymentStatus(DeploymentState.STOPPING, ready, 0, reason)
    return DeploymentStatus(DeploymentState.STOPPED, 0, 0, "" if deployment.replicas else "it has 0 replicas")


def _refusing(row: dict) -> str:
    return f"{row['server__name']} refuses its desired state: {row['server__state__rejected']}"


def _is_away(row: dict) -> bool:
    return row["server__revoked_at"] is not None or row["server__state__lost_at"] is not None


def _is_ready(row: dict) -> bool:
    return row["state"] == InstanceState.READY and not _is_away(row)


def _waiting(rows: list[dict]) -> str:
    """Why instances are not ready: the worst ones first, one reason for each server."""
    told = []
    for row in sorted(rows, key=lambda row: row["state"] not in _FAILING):
        if _is_ready(row):
            continue
        name = row["server__name"] or "a removed server"
        if _is_away(row):
            told.append(f"{name} is lost")
        elif row["server__state__rejected"]:
            told.append(_refusing(row))
        else:
            told.append(f"{row['state']} on {name}" + (f": {row['reason']}" if row["reason"] else ""))
    return "; ".join(dict.fromkeys(told[:3]))
