"""Fragments of deployments and events."""

from __future__ import annotations

from typing import Any

from deployments import services
from deployments.models import Event, Instance, Phase
from monitoring.live.parts import cells, fragment, list_digest
from monitoring.overview import live_deployments

DEPLOYMENT_CELLS = ("state", "ready", "model", "engine")
ENDED_SHOWN = 5


def render_list(ask: Any) -> dict[str, str]:
    found = list_digest(live_deployments())
    rows = list(live_deployments().filter(pk__in=ask.pks))
    statuses = services.statuses(rows)
    for row in rows:
        found |= cells("deployment", DEPLOYMENT_CELLS, row, status=statuses[row.pk])
    return found


def render_one(ask: Any) -> dict[str, str]:
    row = live_deployments().filter(pk=ask.argument).first()
    if row is None:
        return {"deployment:head": fragment("deployment_gone")}
    instances = list(
        Instance.objects.filter(deployment=row)
        .exclude(phase=Phase.ENDED)
        .select_related("server", "revision__model_version__model")
    )
    ended = Instance.objects.filter(deployment=row, phase=Phase.ENDED).exclude(exits=[]).order_by("-ended_at")
    exits = [
        {"instance": instance, **last}
        for instance in [*instances, *ended.select_related("server")[:ENDED_SHOWN]]
        for last in instance.exits
    ]
    exits.sort(key=lambda last: last.get("at") or 0, reverse=True)
    events = Event.objects.filter(deployment=row).select_related("server", "deployment")[:30]
    revisions = list(row.revisions.select_related("model_version__model")[:10])
    context = {"row": row, "status": services.status_of(row), "now": ask.now}
    return {
        "deployment:head": fragment("deployment_head", **context),
        "deployment:why": fragment("deployment_why", **context),
        "deployment:instances": fragment("instances", instances=instances, with_server=True),
        "deployment:exits": fragment("exits", exits=exits[:10]),
        "deployment:events": fragment("events", events=events),
        "deployment:revisions": fragment("revisions", revisions=revisions, row=row),
        "deployment:version": str(row.version),
        "deployment:targets": fragment("log_targets", instances=instances),
    }


def render_events(ask: Any) -> dict[str, str]:
    return list_digest(Event.objects.all(), newest="id")
