"""What is free where: servers, their facts, load and reservations, read into the scheduler's values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings

from deployments.models import Instance, Phase
from deployments.scheduler import Fleet, Gpu, ServerCapacity
from fleet.models import Availability, Server
from wire.engine import RuntimeKind

_MIB = 1 << 20
_SYSTEM_SHARE = 0.05
_SYSTEM_BYTES = 1 << 30  # for the system and the agent, or the share of a small machine


def read_fleet(now: datetime) -> Fleet:
    """All servers, two queries."""
    held: dict[str, list[dict[str, Any]]] = defaultdict(list)
    reservations = Instance.objects.exclude(phase=Phase.ENDED).filter(server__isnull=False)
    for row in reservations.values("server_id", "memory_bytes", "gpu_memory_bytes", "gpu_indexes", "used_memory_bytes"):
        held[row["server_id"]].append(row)
    servers = (
        Server.objects.order_by("name")
        .values(
            "id",
            "name",
            "labels",
            "availability",
            "revoked_at",
            "state__last_seen_at",
            "state__lost_at",
            "state__facts",
            "state__load",
        )
        .filter(revoked_at__isnull=True)
    )
    return Fleet.of(*(capacity_of(row, held[row["id"]], now) for row in servers))


def capacity_of(row: dict[str, Any], held: Iterable[dict[str, Any]], now: datetime) -> ServerCapacity:
    """One server's capacity from its rows."""
    facts, load = row["state__facts"] or {}, row["state__load"] or {}
    held = list(held)
    runtimes = {runtime["kind"]: runtime for runtime in facts.get("runtimes", ())}
    total = facts.get("memory_bytes", 0)
    return ServerCapacity(
        id=row["id"],
        name=row["name"],
        total_bytes=total,
        free_bytes=_free_bytes(total, load, held),
        gpus=tuple(_gpu(device, held) for device in load.get("devices", ())),
        labels=row["labels"] or {},
        docker=RuntimeKind.DOCKER in runtimes,
        programs=frozenset(runtimes.get(RuntimeKind.PROCESS, {}).get("programs", ())),
        closed=_closed(row, now),
    )


def _closed(row: dict[str, Any], now: datetime) -> str:
    if row["state__last_seen_at"] is None or not row["state__facts"]:
        return "has not connected yet"
    if row["state__lost_at"] or now - row["state__last_seen_at"] > timedelta(seconds=settings.LEASE_S):
        return "lost: not heard of"
    if row["availability"] == Availability.CORDONED:
        return "cordoned"
    if row["availability"] == Availability.DRAINING:
        return "being drained"
    return ""


def _free_bytes(total: int, load: dict[str, Any], held: list[dict[str, Any]]) -> int:
    """Neither promised to an instance, nor used by anything else on that machine right now."""
    promised = sum(row["memory_bytes"] for row in held)
    free = total - min(_SYSTEM_BYTES, int(total * _SYSTEM_SHARE)) - promised
    if "memory_available_bytes" in load:
        still_to_come = sum(max(0, row["memory_bytes"] - row["used_memory_bytes"]) for row in held)
        free = min(free, load["memory_available_bytes"] - still_to_come)
    return free


def _gpu(device: dict[str, Any], held: list[dict[str, Any]]) -> Gpu:
    promised = sum(row["gpu_memory_bytes"] for row in held if device["index"] in row["gpu_indexes"])
    taken = max(promised, device["memory_used_bytes"])
    return Gpu(device["index"], device["memory_total_bytes"], device["memory_total_bytes"] - taken)
