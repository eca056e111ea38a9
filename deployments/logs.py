"""Output of instances: live from the agent, or the kept last lines of earlier attempts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from deployments.models import Instance, Phase
from fleet.errors import AgentUnreachable
from fleet.models import ServerState
from fleet.orders import tail_logs_sync

MAX_LINES = 2000
_LEAST_S = 0.3  # for an agent asked after another took all the time


@dataclass(frozen=True)
class Tail:
    """`live` False: kept lines of earlier attempts, and `note` says why."""

    lines: tuple[str, ...]
    live: bool
    note: str = ""


def tail(instance: Instance, lines: int = 200, timeout_s: float = 5.0) -> Tail:
    """Last lines of an instance, oldest first. Never fails for a reason on the server's side."""
    lines = max(1, min(lines, MAX_LINES))
    if instance.phase == Phase.ENDED or instance.server_id is None:
        return _kept(instance, lines, "the instance has ended")
    if not ServerState.objects.filter(server=instance.server_id, connected_since__isnull=False).exists():
        return _kept(instance, lines, "its agent is not connected")
    try:
        answer = tail_logs_sync(instance.server_id, instance.pk, lines, timeout_s)
    except AgentUnreachable as error:
        return _kept(instance, lines, error.message)
    if answer.error:
        return _kept(instance, lines, answer.error)
    return Tail(tuple(answer.lines), live=True)


def tail_many(instances: Iterable[Instance], lines: int = 200, timeout_s: float = 5.0) -> list[Tail]:
    """`tail` of each; all agents that do not answer together cost about `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    return [tail(instance, lines, max(_LEAST_S, deadline - time.monotonic())) for instance in instances]


def _kept(instance: Instance, lines: int, why: str) -> Tail:
    kept: list[str] = []
    for exit in instance.exits:
        kept.append(f"--- attempt {exit['attempt']} ended with exit code {exit['exit_code']} ---")
        kept += exit["lines"]
    return Tail(tuple(kept[-lines:]), live=False, note=why)
