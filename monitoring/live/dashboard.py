"""Fragments of the dashboard."""

from __future__ import annotations

import json
from typing import Any

from apikeys.models import ApiKey
from deployments import services
from deployments.models import Event
from fleet.models import Server
from models_registry.models import ModelVersion
from monitoring.live.parts import fragment
from monitoring.live.servers import server_view, with_instances
from monitoring.overview import hourly, live_deployments, overview

SHOWN = 12


def render(ask: Any) -> dict[str, str]:
    glance = overview(ask.now)
    servers = with_instances(Server.objects.filter(revoked_at__isnull=True))[:SHOWN]
    deployments = list(live_deployments()[:SHOWN])
    statuses = services.statuses(deployments)
    hours = hourly(ask.now)
    steps = {
        "has_server": bool(glance.servers_total),
        "has_model": ModelVersion.objects.exists(),
        "has_deployment": bool(glance.deployments_total),
        "has_key": ApiKey.objects.exists(),
    }
    return {
        "dashboard:cards": fragment("dashboard_cards", glance=glance),
        "dashboard:alerts": fragment("dashboard_alerts", glance=glance),
        "dashboard:next": fragment("dashboard_next", open=not all(steps.values()), **steps),
        "dashboard:servers": fragment(
            "dashboard_servers",
            servers=[server_view(server, ask.now) for server in servers],
            more=max(glance.servers_total - SHOWN, 0),
        ),
        "dashboard:deployments": fragment(
            "dashboard_deployments",
            deployments=[{"row": row, "status": statuses[row.pk]} for row in deployments],
            more=max(glance.deployments_total - SHOWN, 0),
        ),
        "dashboard:events": fragment("events", events=Event.objects.select_related("deployment", "server")[:10]),
        "dashboard:series": fragment("series", series=json.dumps(chart_series(hours))),
    }


def chart_series(hours: list[dict[str, Any]]) -> dict[str, Any]:
    """What `charts.js` draws: labels, and the bars of each chart."""
    return {
        "labels": [f"{row['hour']:%H}:00" for row in hours],
        "requests": [{"label": "requests", "data": [row["requests"] for row in hours]}],
        "tokens": [
            {"label": "prompt tokens", "data": [row["prompt_tokens"] for row in hours]},
            {"label": "completion tokens", "data": [row["completion_tokens"] for row in hours]},
        ],
    }
