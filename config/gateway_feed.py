"""What gateways must know, built once for all of them: the whole state at first, then what changed.

Routes are looked at every `LOOK_EVERY_S`. Keys and projects are built only when a cheap check (three aggregates) says
that something changed, on a hint, and every `KEYS_AT_LEAST_EVERY_S` all the same: a write may have passed both by.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db.models import Count, Max
from django.utils import timezone

from apikeys.models import ApiKey, ModelQuota, Project, UsageBatch
from apikeys.services import feed_keys, feed_projects
from deployments.services import feed_routes
from fleet.models import Gateway
from wire.feed import FeedDelta, FeedKey, FeedProject, FeedRoute, FeedSnapshot

LOOK_EVERY_S = 0.35
KEYS_AT_LEAST_EVERY_S = 10.0


@dataclass(frozen=True)
class FeedState:
    """All that gateways know, by id."""

    projects: Mapping[str, FeedProject] = field(default_factory=dict)
    keys: Mapping[str, FeedKey] = field(default_factory=dict)
    routes: Mapping[str, FeedRoute] = field(default_factory=dict)

    def snapshot(self) -> FeedSnapshot:
        return FeedSnapshot(
            pepper=settings.KEY_PEPPER,
            projects=tuple(self.projects.values()),
            keys=tuple(self.keys.values()),
            routes=tuple(self.routes.values()),
        )


def difference(old: FeedState, new: FeedState) -> FeedDelta | None:
    """What turns `old` into `new`; None when they are equal. Pure."""
    projects, gone_projects = _changes(old.projects, new.projects)
    keys, gone_keys = _changes(old.keys, new.keys)
    routes, gone_routes = _changes(old.routes, new.routes)
    if not (projects or keys or routes or gone_projects or gone_keys or gone_routes):
        return None
    return FeedDelta(
        projects=projects,
        keys=keys,
        routes=routes,
        gone_projects=gone_projects,
        gone_keys=gone_keys,
        gone_routes=gone_routes,
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    if old is new:
        return (), ()
    put = tuple(value for key, value in new.items() if old.get(key) != value)
    return put, tuple(old.keys() - new.keys())


@dataclass(frozen=True)
class Look:
    """Result of one look at the database."""

    base: FeedState | None
    state: FeedState
    delta: FeedDelta | None
    """From `base` to `state`; None when they are equal."""
    revoked: frozenset[str]
    """Of the gateways asked about: those that are revoked or deleted."""


class FeedBuilder:
    """Looks at the database and says what changed since its last look. Synchronous; used by one thread at a time."""

    def __init__(self) -> None:
        self.state: FeedState | None = None
        self._mark: tuple[Any, ...] = ()
        self._built_at = 0.0

    def look(self, gateway_ids: Iterable[str], keys_changed: bool) -> Look:
        """The newest state, what changed in it, and which gateways must go. Raises DatabaseError."""
        now = timezone.now()
        asked = frozenset(gateway_ids)
        good = Gateway.objects.filter(pk__in=asked, revoked_at__isnull=True).values_list("pk", flat=True)
        revoked = asked - frozenset(good)
        base, old = self.state, self.state or FeedState()
        new = FeedState(*self._keys_and_projects(old, now, keys_changed), _by_id(feed_routes()))
        delta = difference(old, new)
        if delta is not None or self.state is None:
            self.state = new
        return Look(base, self.state or new, delta, revoked)

    def _keys_and_projects(
        self, old: FeedState, now: dt.datetime, keys_changed: bool
    ) -> tuple[Mapping[str, FeedProject], Mapping[str, FeedKey]]:
        mark = _change_mark(now)
        fresh = time.monotonic() - self._built_at < KEYS_AT_LEAST_EVERY_S
        if self.state is not None and fresh and mark == self._mark and not keys_changed:
            return old.projects, old.keys
        projects, keys = _by_id(feed_projects(now)), _by_id(feed_keys(now))
        self._mark, self._built_at = mark, time.monotonic()
        return projects, keys


def _change_mark(now: dt.datetime) -> tuple[Any, ...]:
    """Differs when keys, projects or usage changed, or the UTC day did. Taken before the rows are read."""
    keys = ApiKey.objects.aggregate(Count("pk"), Max("updated_at"), Max("revoked_at"))
    projects = Project.objects.aggregate(Count("pk"), Max("updated_at"))
    quotas = ModelQuota.objects.aggregate(Count("pk"), Max("updated_at"))
    usage = UsageBatch.objects.aggregate(Max("received_at"))
    return (now.astimezone(dt.UTC).date(), *keys.values(), *projects.values(), *quotas.values(), *usage.values())


def _by_id(items: Iterable[Any]) -> dict[str, Any]:
    return {item.id: item for item in items}
