"""The gateway's view of the fleet: keys, projects and routes, as the master last told them. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from wire.feed import FeedDelta, FeedKey, FeedProject, FeedRoute, FeedSnapshot


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key, ready for use."""

    key: FeedKey
    digest: bytes
    """HMAC-SHA256 of the whole key."""
    models: frozenset[str] | None
    received_at: float
    """Unix time at which the master told it: its `tokens_today` are of that day."""


@dataclass(frozen=True, slots=True)
class ProjectEntry:
    project: FeedProject
    received_at: float


@dataclass(frozen=True, slots=True)
class State:
    """A whole, consistent state. Deltas make a new one; a request looks at one only."""

    pepper: bytes = b""
    keys: Mapping[str, KeyEntry] = field(default_factory=dict)
    projects: Mapping[str, ProjectEntry] = field(default_factory=dict)
    routes: Mapping[str, FeedRoute] = field(default_factory=dict)

    def routable(self) -> tuple[str, ...]:
        """Instances that a later request could still be sent to."""
        return tuple({target.instance_id: None for route in self.routes.values() for target in route.targets})


def from_snapshot(snapshot: FeedSnapshot, at: float) -> State:
    """Raises ValueError when pepper or a hash is not hexadecimal. `at` is Unix time."""
    return State(
        pepper=bytes.fromhex(snapshot.pepper),
        keys=_key_entries(snapshot.keys, at),
        projects={project.id: ProjectEntry(project, at) for project in snapshot.projects},
        routes={route.id: route for route in snapshot.routes},
    )


def apply_delta(state: State, delta: FeedDelta, at: float) -> State:
    """The state after `delta`; `state` stays as it is."""
    keys, projects, routes = dict(state.keys), dict(state.projects), dict(state.routes)
    keys.update(_key_entries(delta.keys, at))
    projects.update((project.id, ProjectEntry(project, at)) for project in delta.projects)
    routes.update((route.id, route) for route in delta.routes)
    for gone, entries in ((delta.gone_keys, keys), (delta.gone_projects, projects), (delta.gone_routes, routes)):
        for name in gone:
            entries.pop(name, None)
    return State(pepper=state.pepper, keys=keys, projects=projects, routes=routes)


def to_snapshot(state: State) -> FeedSnapshot:
    """What to keep on disk."""
    return FeedSnapshot(
        pepper=state.pepper.hex(),
        projects=tuple(entry.project for entry in state.projects.values()),
        keys=tuple(entry.key for entry in state.keys.values()),
        routes=tuple(state.routes.values()),
    )


def _key_entries(keys: Iterable[FeedKey], at: float) -> dict[str, KeyEntry]:
    return {
        key.id: KeyEntry(key, bytes.fromhex(key.secret_hash), None if key.models is None else frozenset(key.models), at)
        for key in keys
    }
