"""The whole installation at a glance: the numbers of the dashboard, of `/api/v1/overview` and of the exporter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Sum
from django.db.models.functions import Coalesce
from django.urls import reverse

from apikeys.models import UsageHour
from deployments import services as deployment_services
from deployments.models import Deployment, Instance, Leader, Phase
from fleet.load import CERTIFICATE_WARNING, load_shares, node_status
from fleet.models import Gateway, Server
from fleet.status import NodeStatus
from models_registry.location_models import CopyState, StorageLocation, VersionCopy
from models_registry.models import VersionState

CHART_HOURS = 24
_TROUBLE = {"failed", "unplaceable", "degraded"}


@dataclass(frozen=True)
class Alert:
    """Something an operator should look at now, and where."""

    severity: str  # error | warning
    message: str
    url: str = ""


@dataclass(frozen=True)
class Overview:
    servers_total: int
    servers_online: int
    gateways_online: int
    deployments_total: int
    deployments_ready: int
    instances: dict[str, int]  # observed state -> live instances
    requests_per_minute: float
    tokens_per_minute: float
    controller_age_s: float | None  # since its last complete pass; None: it never ran
    alerts: tuple[Alert, ...]


def live_deployments() -> Any:
    """Deployments with what their pages show."""
    return Deployment.objects.filter(deleted_at__isnull=True).select_related(
        "revision", "revision__model_version", "revision__model_version__model", "alias__model"
    )


def overview(now: datetime) -> Overview:
    """A constant number of queries."""
    servers = list(Server.objects.filter(revoked_at__isnull=True).select_related("state"))
    gateways = list(Gateway.objects.filter(revoked_at__isnull=True).select_related("state"))
    deployments = list(live_deployments())
    statuses = deployment_services.statuses(deployments)
    online = [gateway for gateway in gateways if node_status(gateway, now) is NodeStatus.ONLINE]
    leader = Leader.objects.filter(name="controller").first()
    age_s = (now - leader.ticked_at).total_seconds() if leader and leader.ticked_at else None
    return Overview(
        servers_total=len(servers),
        servers_online=sum(node_status(server, now) is NodeStatus.ONLINE for server in servers),
        gateways_online=len(online),
        deployments_total=len(deployments),
        deployments_ready=sum(str(statuses[row.pk].state) == "ready" for row in deployments),
        instances=dict(Counter(Instance.objects.exclude(phase=Phase.ENDED).values_list("state", flat=True))),
        requests_per_minute=round(sum(gateway.state.requests_per_minute for gateway in online), 1),
        tokens_per_minute=round(sum(gateway.state.tokens_per_minute for gateway in online), 1),
        controller_age_s=age_s,
        alerts=(
            *_control_alerts(deployments, gateways, online, age_s),
            *_server_alerts(servers, now),
            *_deployment_alerts(deployments, statuses),
            *_store_alerts(),
        ),
    )


def _control_alerts(deployments: list, gateways: list, online: list, age_s: float | None) -> list[Alert]:
    alerts = []
    if age_s is None or age_s > 15:
        said = "has not run yet" if age_s is None else f"has not finished a pass for {age_s:.0f} s"
        alerts.append(Alert("error", f"The controller {said}: nothing is placed or healed until it does."))
    if gateways and not online:
        alerts.append(Alert("error", "No gateway is connected: its numbers are old, and changes do not reach it."))
    if deployments and not gateways:
        alerts.append(Alert("warning", "No gateway has joined: clients have nowhere to send requests."))
    return alerts


def _server_alerts(servers: list[Server], now: datetime) -> list[Alert]:
    alerts = []
    for server in servers:
        url = reverse("admin:fleet_server_change", args=[server.pk])
        if node_status(server, now) is NodeStatus.LOST:
            alerts.append(Alert("error", f"Server {server.name} is lost: nothing was heard of it for too long.", url))
            continue
        state = getattr(server, "state", None)
        if state and state.rejected:
            alerts.append(Alert("error", f"Server {server.name} refuses its desired state: {state.rejected}", url))
        if state and (load_shares(state.load)["disk"] or 0) > 92:
            alerts.append(Alert("warning", f"Server {server.name} is nearly out of disk.", url))
        if state and state.cache and state.cache["alarm"]:
            alerts.append(Alert("warning", f"Server {server.name}: {state.cache['alarm']}.", url))
        expires = server.certificate_expires_at
        if expires and expires - now < CERTIFICATE_WARNING:
            alerts.append(Alert("warning", f"The certificate of server {server.name} ends {expires:%Y-%m-%d}.", url))
    return alerts


def _deployment_alerts(deployments: list[Deployment], statuses: dict[int, Any]) -> list[Alert]:
    alerts = []
    for row in deployments:
        status = statuses[row.pk]
        if str(status.state) in _TROUBLE:
            severity = "warning" if str(status.state) == "degraded" else "error"
            url = reverse("admin:deployments_deployment_change", args=[row.pk])
            said = f": {status.reason}" if status.reason else ""
            alerts.append(Alert(severity, f"{row.name} is {status.state}{said}", url))
    return alerts


def _store_alerts() -> list[Alert]:
    """What is wrong where models are kept."""
    alerts = []
    for place in StorageLocation.objects.filter(reachable=False):
        url = reverse("admin:models_registry_storagelocation_change", args=[place.pk])
        alerts.append(Alert("error", f"Location {place.name} cannot be reached: {place.error}", url))
    damaged = VersionCopy.objects.exclude(state=CopyState.WHOLE).filter(version__state=VersionState.READY)
    for copy in damaged.select_related("version__model", "location"):
        url = reverse("admin:models_registry_modelversion_change", args=[copy.version_id])
        alerts.append(Alert("error", f"{copy} is {copy.state}: {copy.problem}", url))
    return alerts


def hourly(now: datetime, hours: int = CHART_HOURS) -> list[dict[str, Any]]:
    """Requests and tokens of each of the last `hours` hours, oldest first, gaps filled with zero."""
    last = now.replace(minute=0, second=0, microsecond=0)
    first = last - timedelta(hours=hours - 1)
    rows = (
        UsageHour.objects.filter(hour__gte=first)
        .values("hour")
        .order_by("hour")
        .annotate(
            calls=Coalesce(Sum("requests"), 0),
            input_tokens=Coalesce(Sum("prompt_tokens"), 0),
            output_tokens=Coalesce(Sum("completion_tokens"), 0),
        )
    )
    found = {row["hour"]: row for row in rows}
    return [
        {
            "hour": hour,
            "requests": found.get(hour, {}).get("calls", 0),
            "prompt_tokens": found.get(hour, {}).get("input_tokens", 0),
            "completion_tokens": found.get(hour, {}).get("output_tokens", 0),
        }
        for hour in (first + timedelta(hours=index) for index in range(hours))
    ]
