"""Fragments of servers and gateways."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, Q

from deployments.models import Event, Instance, Phase
from fleet.load import load_shares, node_status
from fleet.models import Gateway, Server
from monitoring.live.parts import cells, fragment, list_digest
from monitoring.models import LoadSample

SERVER_CELLS = ("status", "load", "instances", "availability", "seen")
GATEWAY_CELLS = ("status", "traffic", "seen")


def with_instances(rows: Any) -> Any:
    """Adds `live_instances` and `ready_instances`."""
    live = ~Q(instances__phase=Phase.ENDED)
    return rows.select_related("state", "desired").annotate(
        live_instances=Count("instances", filter=live),
        ready_instances=Count("instances", filter=live & Q(instances__state="ready")),
    )


def server_view(server: Server, now: Any) -> dict[str, Any]:
    """What templates show of a server."""
    state = getattr(server, "state", None)
    load = (state.load if state else None) or {}
    return {
        "row": server,
        "state": state,
        "status": str(node_status(server, now)),
        "load": load,
        "shares": load_shares(load),
        "facts": (state.facts if state else None) or {},
        "now": now,
    }


def render_list(ask: Any) -> dict[str, str]:
    found = list_digest(Server.objects.all())
    for server in with_instances(Server.objects.filter(pk__in=ask.pks)):
        view = server_view(server, ask.now)
        view.pop("row")
        found |= cells("server", SERVER_CELLS, server, **view)
    return found


def render_one(ask: Any) -> dict[str, str]:
    server = Server.objects.select_related("state", "desired").filter(pk=ask.argument).first()
    if server is None:
        return {"server:gone": "gone"}
    view = server_view(server, ask.now)
    instances = (
        Instance.objects.filter(server=server)
        .exclude(phase=Phase.ENDED)
        .select_related("deployment", "revision__model_version__model")
    )
    events = Event.objects.filter(server=server).select_related("deployment", "server")[:15]
    samples = list(LoadSample.objects.filter(server=server).order_by("-at")[:60])[::-1]
    return {
        "server:head": fragment("server_head", **view),
        "server:load": fragment("server_load", **view),
        "server:facts": fragment("server_facts", **view),
        "server:cache": fragment("server_cache", row=server),
        "server:instances": fragment("instances", instances=instances, with_server=False),
        "server:events": fragment("events", events=events),
        "server:samples": fragment("server_samples", samples=samples),
    }


def render_gateways(ask: Any) -> dict[str, str]:
    found = list_digest(Gateway.objects.all())
    for gateway in Gateway.objects.filter(pk__in=ask.pks).select_related("state"):
        status = str(node_status(gateway, ask.now))
        found |= cells("gateway", GATEWAY_CELLS, gateway, status=status, state=getattr(gateway, "state", None))
    return found
