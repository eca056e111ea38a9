"""One load sample per server and minute, for charts; kept for two weeks."""

from __future__ import annotations

from datetime import datetime, timedelta

from fleet.load import load_shares
from fleet.models import ServerState
from monitoring.models import LoadSample

KEEP = timedelta(days=14)
FRESH = timedelta(seconds=90)


def take_samples(now: datetime) -> int:
    """Store the newest load of each server that reported lately; again in the same minute: the newer one stays."""
    minute = now.replace(second=0, microsecond=0)
    samples = []
    for state in ServerState.objects.filter(load_at__gte=now - FRESH, server__revoked_at__isnull=True):
        shares = load_shares(state.load)
        samples.append(
            LoadSample(
                server_id=state.server_id,
                at=minute,
                cpu_percent=shares["cpu"] or 0,
                memory_percent=shares["memory"] or 0,
                disk_percent=shares["disk"] or 0,
                gpu_percent=shares["gpu"],
                gpu_memory_percent=shares["gpu_memory"],
            )
        )
    LoadSample.objects.bulk_create(
        samples,
        update_conflicts=True,
        unique_fields=["server", "at"],
        update_fields=["cpu_percent", "memory_percent", "disk_percent", "gpu_percent", "gpu_memory_percent"],
        batch_size=500,
    )
    return len(samples)


def drop_old(now: datetime) -> int:
    """Delete samples older than `KEEP`; how many."""
    return LoadSample.objects.filter(at__lt=now - KEEP).delete()[0]
