"""The topics of `/ws/live`: who may see each, and what renders it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from monitoring.live import dashboard, deployments, keys, models, servers

Fragments = dict[str, str]


@dataclass(frozen=True)
class Ask:
    """What a page wants: rows named by `argument` or `pks`, as seen by `user`, at `now`."""

    user: Any
    argument: str
    pks: frozenset[str]
    now: datetime


@dataclass(frozen=True)
class Topic:
    """`permission` '' means: any staff; then `render` itself narrows to what the user may see."""

    permission: str
    render: Callable[[Ask], Fragments]
    of_one_row: bool = False

    @property
    def per_user(self) -> bool:
        return self.permission == ""


TOPICS: dict[str, Topic] = {
    "dashboard": Topic("fleet.view_server", dashboard.render),
    "servers": Topic("fleet.view_server", servers.render_list),
    "server": Topic("fleet.view_server", servers.render_one, of_one_row=True),
    "gateways": Topic("fleet.view_gateway", servers.render_gateways),
    "models": Topic("models_registry.view_modelversion", models.render_list),
    "model": Topic("models_registry.view_modelversion", models.render_one, of_one_row=True),
    "deployments": Topic("deployments.view_deployment", deployments.render_list),
    "deployment": Topic("deployments.view_deployment", deployments.render_one, of_one_row=True),
    "events": Topic("deployments.view_event", deployments.render_events),
    "keys": Topic("", keys.render_keys),
    "usage": Topic("", keys.render_usage),
}


def find(text: str) -> tuple[Topic, str] | None:
    """`server:srv-1` -> the topic and its argument; None when there is no such topic."""
    name, _, argument = text.partition(":")
    topic = TOPICS.get(name)
    if topic is None or topic.of_one_row != bool(argument):
        return None
    return topic, argument


def may_see(user: Any, topic: Topic) -> bool:
    return bool(user.is_active and user.is_staff and (not topic.permission or user.has_perm(topic.permission)))


def wanted_pks(slots: list[str]) -> frozenset[str]:
    """Row ids within slot names such as `server:srv-1:load`."""
    return frozenset(parts[1] for parts in (slot.split(":", 2) for slot in slots) if len(parts) == 3)
