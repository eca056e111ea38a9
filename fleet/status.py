"""Status of a node, derived from what was last seen of it and how long ago. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum

from fleet.models import Gateway, Server


class NodeStatus(StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"  # its link is down, its lease may still run
    LOST = "lost"  # its lease ran out
    NEVER = "never"  # joined, never connected
    REVOKED = "revoked"


@dataclass(frozen=True)
class Status:
    """`age_s` is the time since it was last seen; None: never."""

    state: NodeStatus
    age_s: float | None


def status_of(node: Server | Gateway, now: dt.datetime, lease_s: float) -> Status:
    """Status of a server or gateway whose `state` is loaded (or missing)."""
    state = getattr(node, "state", None)
    seen = state.last_seen_at if state is not None else None
    age_s = max(0.0, (now - seen).total_seconds()) if seen is not None else None
    if node.revoked_at is not None:
        return Status(NodeStatus.REVOKED, age_s)
    if state is None or age_s is None:
        return Status(NodeStatus.NEVER, None)
    if getattr(state, "lost_at", None) is not None:
        return Status(NodeStatus.LOST, age_s)
    if age_s > lease_s:
        return Status(NodeStatus.LOST, age_s)
    if state.connected_since is None:
        return Status(NodeStatus.OFFLINE, age_s)
    return Status(NodeStatus.ONLINE, age_s)
