"""The gateway's view of the fleet: keys, projects and routes, as the master last told them. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from gateway.quotas.subjects import Subject, key_account, model_account, project_account
from wire.feed import FeedDelta, FeedKey, FeedProject, FeedRoute, FeedSnapshot, Limits

Network = IPv4Network | IPv6Network
_UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key, ready for use."""

    key: FeedKey
    digest: bytes
    """HMAC-SHA256 of the whole key."""
    previous_digest: bytes
    """Of the key before its rotation; empty when there is none."""
    models: frozenset[str] | None
    endpoints: frozenset[str] | None
    networks: tuple[Network, ...]
    subject: Subject | None
    """None without limits."""


@dataclass(frozen=True, slots=True)
class ProjectEntry:
    project: FeedProject
    subject: Subject | None
    models: Mapping[str, Subject]
    """Of models that this project has a quota for."""


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
    """Raises ValueError when pepper or a hash is not hexadecimal, or a network none. `at` is Unix time."""
    return State(
        pepper=bytes.fromhex(snapshot.pepper),
        keys=_key_entries(snapshot.keys, at),
        projects=_project_entries(snapshot.projects, at),
        routes={route.id: route for route in snapshot.routes},
    )


def apply_delta(state: State, delta: FeedDelta, at: float) -> State:
    """The state after `delta`; `state` stays as it is."""
    keys, projects, routes = dict(state.keys), dict(state.projects), dict(state.routes)
    keys.update(_key_entries(delta.keys, at))
    projects.update(_project_entries(delta.projects, at))
    routes.update((route.id, route) for route in delta.routes)
    for gone, entries in ((delta.gone_keys, keys), (delta.gone_projects, projects), (delta.gone_routes, routes)):
        for name in gone:
            entries.pop(name, None)
    return State(pepper=state.pepper, keys=keys, projects=projects, routes=routes)


def accounts_of(state: State, key_ids: Iterable[str] | None, project_ids: Iterable[str] | None) -> Iterator[str]:
    """Names of the accounts of these keys and projects (None: of all)."""
    for key_id in state.keys if key_ids is None else key_ids:
        yield key_account(key_id)
    for project_id in state.projects if project_ids is None else project_ids:
        yield project_account(project_id)
        if (entry := state.projects.get(project_id)) is not None:
            yield from (subject.name for subject in entry.models.values())


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
        key.id: KeyEntry(
            key=key,
            digest=bytes.fromhex(key.secret_hash),
            previous_digest=bytes.fromhex(key.previous_hash),
            models=None if key.models is None else frozenset(key.models),
            endpoints=None if key.endpoints is None else frozenset(key.endpoints),
            networks=tuple(ip_network(network, strict=False) for network in key.networks),
            subject=None if key.limits == _UNLIMITED else Subject("key", key_account(key.id), key.limits, key.used, at),
        )
        for key in keys
    }


def _project_entries(projects: Iterable[FeedProject], at: float) -> dict[str, ProjectEntry]:
    return {
        project.id: ProjectEntry(
            project=project,
            subject=None
            if project.limits == _UNLIMITED
            else Subject("project", project_account(project.id), project.limits, project.used, at),
            models={
                quota.model: Subject("model", model_account(project.id, quota.model), quota.limits, quota.used, at)
                for quota in project.model_quotas
            },
        )
        for project in projects
    }
