"""What agents report of instances, taken into rows; transitions become events."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from django.db import transaction

from deployments.events import log_event
from deployments.models import Instance, Phase, Severity
from fleet import hints
from wire.messages import InstanceState, LastExit, Observed, ObservedInstance

_FIELDS = (
    "state",
    "reason",
    "state_since",
    "observed_at",
    "runtime",
    "unit_id",
    "port",
    "restarts",
    "progress",
    "used_memory_bytes",
    "exits",
)
_MEMORY_STEP_BYTES = 16 << 20  # smaller changes of used memory are not worth a write
_PROGRESS_STEP = 0.01
KEPT_EXITS = 5  # of each instance


def record_observed(server_id: str, observed: Observed, now: datetime) -> int:
    """Take over what a server reports of its instances; how many rows changed.

    Instances that are unknown, ended or another server's are ignored: the desired state will end them. Nothing is
    written when nothing changed, so a heartbeat costs one query.
    """
    seen = {unit.instance_id: unit for unit in observed.instances}
    if not seen:
        return 0
    with transaction.atomic():
        rows = (
            Instance.objects.filter(server_id=server_id, pk__in=seen)
            .exclude(phase=Phase.ENDED)
            .select_related("deployment", "server")
            .select_for_update(of=("self",))  # the controller may be ending them
            .order_by("pk")
        )
        changed = [row for row in rows if _take_over(row, seen[row.pk], now)]
        Instance.objects.bulk_update(changed, _FIELDS)
        if changed:
            hints.hint_on_commit(hints.FEED, {"type": "changed"})
    return len(changed)


def _take_over(row: Instance, unit: ObservedInstance, now: datetime) -> bool:
    """Set the observed fields of `row`; whether any of them changed."""
    state_before, unit_before, exits_before = row.state, row.unit_id, row.exits
    exits = _kept_exits(exits_before, unit.exits)
    wanted = {
        "state": unit.state.value,
        "reason": unit.reason,
        "runtime": unit.runtime.value,
        "unit_id": unit.unit_id[:80],
        "port": unit.port,
        "restarts": unit.restarts,
        "exits": exits,
    }
    changed = any(getattr(row, name) != value for name, value in wanted.items())
    changed = changed or abs(row.used_memory_bytes - unit.memory_bytes) >= _MEMORY_STEP_BYTES
    changed = changed or abs(row.progress - unit.progress) >= _PROGRESS_STEP
    if not changed:
        return False
    for name, value in wanted.items():
        setattr(row, name, value)
    row.used_memory_bytes, row.progress, row.observed_at = unit.memory_bytes, unit.progress, now
    if row.state != state_before or row.unit_id != unit_before or row.state_since is None:
        row.state_since = datetime.fromtimestamp(unit.since, UTC) if unit.since else now
    _tell(row, unit, state_before, exits_before, now)
    return True


def _kept_exits(before: list[dict], reported: tuple[LastExit, ...]) -> list[dict]:
    """The newest of all exits known, oldest first: an agent that lost its own records takes none away."""
    found = {(exit["attempt"], exit["at"]): exit for exit in before}
    found |= {(exit.attempt, exit.at): msgspec.to_builtins(exit) for exit in reported}
    return sorted(found.values(), key=lambda exit: (exit["at"], exit["attempt"]))[-KEPT_EXITS:]


def _tell(row: Instance, unit: ObservedInstance, before: str, exits_before: list[dict], now: datetime) -> None:
    where = row.server.name if row.server else "a removed server"
    links = {"deployment_id": row.deployment_id, "instance_id": row.pk, "server_id": row.server_id, "now": now}
    known = {(exit["attempt"], exit["at"]) for exit in exits_before}
    if row.phase in (Phase.RUN, Phase.DRAIN):
        for exit in unit.exits:
            if (exit.attempt, exit.at) not in known:
                _tell_exit(row, exit, where, links)
    if row.state == before:
        return
    name = row.deployment.name
    if unit.state is InstanceState.READY:
        log_event("instance.ready", f"{name} is ready on {where}.", **links)
    elif unit.state is InstanceState.UNHEALTHY:
        log_event(
            "instance.unhealthy",
            f"{name} on {where} does not answer its check: {unit.reason or 'no reason given'}.",
            severity=Severity.WARNING,
            remedy="It gets no requests until it answers again; look at its log.",
            **links,
        )
    elif unit.state is InstanceState.FAILED:
        log_event(
            "instance.failed",
            f"{name} cannot run on {where}: {unit.reason or 'no reason given'}.",
            severity=Severity.ERROR,
            remedy=_last(unit.exits, "remedy") or "Correct what the reason names; another server is tried meanwhile.",
            **links,
        )


def _tell_exit(row: Instance, exit: LastExit, where: str, links: dict) -> None:
    how = "ended unseen" if exit.exit_code is None else f"ended with exit code {exit.exit_code}"
    cause = f": {exit.cause}" if exit.cause else "."
    log_event(
        "instance.crashed",
        f"{row.deployment.name} on {where} {how} after {exit.ran_s:.0f} s (attempt {exit.attempt}){cause}",
        severity=Severity.ERROR,
        remedy=exit.remedy or "Read its last lines in the details.",
        details=msgspec.to_builtins(exit),
        **links,
    )


def _last(exits: tuple[LastExit, ...], field: str) -> str:
    return getattr(exits[-1], field) if exits else ""
