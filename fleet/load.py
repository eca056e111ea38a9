"""Shares of a stored load report, and the status of a node under this installation's lease. For pages and metrics."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings

from fleet.models import Gateway, Server
from fleet.status import NodeStatus, status_of

CERTIFICATE_WARNING = timedelta(days=14)


def node_status(node: Server | Gateway, now: datetime) -> NodeStatus:
    """`node.state` must be loaded (select_related)."""
    return status_of(node, now, settings.LEASE_S).state


def load_shares(load: dict[str, Any] | None) -> dict[str, float | None]:
    """Shares in percent of a stored `wire.messages.Load`: cpu, memory, disk, gpu, gpu_memory. None: not known."""
    if not load:
        return dict.fromkeys(("cpu", "memory", "disk", "gpu", "gpu_memory"))
    memory, disk = load.get("memory_total_bytes") or 0, load.get("disk_total_bytes") or 0
    devices = load.get("devices") or []
    gpu_memory = sum(device["memory_total_bytes"] for device in devices)
    return {
        "cpu": load.get("cpu_percent"),
        "memory": 100 * (memory - load.get("memory_available_bytes", 0)) / memory if memory else None,
        "disk": 100 * (disk - load.get("disk_free_bytes", 0)) / disk if disk else None,
        "gpu": sum(device["utilization_percent"] for device in devices) / len(devices) if devices else None,
        "gpu_memory": 100 * sum(device["memory_used_bytes"] for device in devices) / gpu_memory if gpu_memory else None,
    }
