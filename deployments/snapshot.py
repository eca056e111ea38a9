"""What the controller looks at, read with a constant number of queries and turned into values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings

from deployments import engines
from deployments.engines.base import EngineError
from deployments.estimate import shapes_of
from deployments.models import Deployment, Instance, Phase
from deployments.planner import FAILING, Holding, Holdings, Reservation, Subject
from deployments.rollout import Host, Seen, Stage, Wanted
from deployments.scheduler import Shape
from deployments.specs import digest_of, model_facts
from fleet.models import Availability, Server, ServerState
from fleet.services import live_gateways
from wire.engine import RuntimeKind
from wire.messages import CachePolicy, InstanceState

_RECENT_EXIT = timedelta(minutes=30)
_FAILED_ON_FOR = timedelta(hours=1)  # a server where a revision kept failing is avoided this long


@dataclass(frozen=True)
class ServerRow:
    id: str
    name: str
    availability: str
    revoked: bool
    last_seen: float | None  # Unix time
    lost_since: float | None
    generation: int
    observed_generation: int
    cache: CachePolicy = field(default_factory=CachePolicy)


def read_servers() -> dict[str, ServerRow]:
    """All servers without their bulky columns; one query."""
    rows = Server.objects.values_list(
        "id",
        "name",
        "availability",
        "revoked_at",
        "state__last_seen_at",
        "state__lost_at",
        "desired__generation",
        "state__observed_generation",
        "cache_quota_bytes",
        "keep_versions",
        "download_bytes_per_second",
        "upload_bytes_per_second",
    )
    return {
        pk: ServerRow(
            pk,
            name,
            availability,
            revoked is not None,
            _unix(seen),
            _unix(lost),
            wanted or 0,
            observed or 0,
            CachePolicy(
                quota_bytes=quota,
                keep_versions=keep,
                download_bytes_per_second=download,
                upload_bytes_per_second=upload,
                scrub_every_s=settings.SCRUB_EVERY_DAYS * 86400 if settings.SCRUB_EVERY_DAYS > 0 else None,
                scrub_bytes_per_second=settings.SCRUB_BYTES_PER_SECOND or None,
            ),
        )
        for pk, name, availability, revoked, seen, lost, wanted, observed, quota, keep, download, upload in rows
    }


def read_holdings() -> Holdings:
    """Which model versions are on which server, of those servers that tell; one query."""
    rows = ServerState.objects.filter(cache__isnull=False).values_list("server_id", "cache")
    return {
        server_id: {model["digest"]: Holding(model["progress"] >= 1.0, model["problem"]) for model in cache["models"]}
        for server_id, cache in rows
    }


@dataclass(frozen=True)
class Promised:
    """What a server's desired state has in it. `held`: digests."""

    instances: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    cache: CachePolicy = field(default_factory=CachePolicy)


NOTHING = Promised()


def read_instances() -> list[Instance]:
    """All instances that have not ended; one query."""
    return list(Instance.objects.exclude(phase=Phase.ENDED).order_by("created_at", "id"))


def read_subjects(
    instances: list[Instance],
    servers: dict[str, ServerRow],
    evicted: frozenset[str],
    promised: Mapping[str, Promised],
    now: datetime,
) -> list[tuple[Deployment, Subject]]:
    """Every deployment as the planner sees it. `promised`: what is in each server's desired state."""
    routable, in_flight = _gateway_reports(now)
    gone = _gone(instances, servers, promised)
    by_deployment: dict[int, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_deployment[instance.deployment_id].append(instance)
    deployments = Deployment.objects.select_related("revision__model_version__model").order_by("id")
    failed_on = _failed_on(now)
    subjects = []
    for deployment in deployments:
        rows = by_deployment[deployment.pk]
        seen = tuple(_seen(row, servers, evicted, gone, routable, in_flight, now) for row in rows)
        subjects.append((deployment, _subject(deployment, rows, seen, failed_on)))
    return subjects


def _subject(
    deployment: Deployment, rows: list[Instance], seen: tuple[Seen, ...], failed_on: dict[int, dict[str, str]]
) -> Subject:
    revision = deployment.revision
    live = deployment.running and deployment.deleted_at is None and revision is not None
    placement = revision.placement if revision else {}
    shapes, program, problem = shapes_and_program(deployment) if live else ((), "", "")
    return Subject(
        deployment_id=deployment.pk,
        wanted=Wanted(deployment.replicas if live else 0, deployment.revision_id or 0),
        instances=seen,
        reservations={
            row.pk: Reservation(row.server_id or "", row.memory_bytes, tuple(row.gpu_indexes), row.gpu_memory_bytes)
            for row in rows
        },
        shapes=shapes,
        program=program,
        problem=problem,
        runtime=RuntimeKind(revision.runtime) if revision else RuntimeKind.AUTO,
        labels=placement.get("labels") or {},
        servers=frozenset(placement.get("servers") or ()),
        failed_on=failed_on.get(deployment.revision_id or 0, {}),
        digest=digest_of(revision) if live and not problem else "",
    )


def shapes_and_program(deployment: Deployment) -> tuple[tuple[Shape, ...], str, str]:
    """How an instance of its revision may be placed, its program, and why it cannot be placed at all.

    A revision was checked when it was made; should a newer release refuse it all the same, what runs goes on.
    """
    revision = deployment.revision
    try:
        adapter = engines.get(revision.engine)
        facts = model_facts(revision.model_version)
        shapes = shapes_of(adapter, facts, revision.parameters, revision.placement.get("gpus"))
    except EngineError as error:
        return (), "", error.message
    return shapes, adapter.program, ""


def _seen(
    row: Instance,
    servers: dict[str, ServerRow],
    evicted: frozenset[str],
    gone: set[str],
    routable: set[str],
    in_flight: dict[str, int],
    now: datetime,
) -> Seen:
    server = servers.get(row.server_id or "")
    since = (now - _RECENT_EXIT).timestamp()
    return Seen(
        id=row.pk,
        revision=row.revision_id,
        server_id=row.server_id or "",
        server_name=server.name if server else "a removed server",
        stage=Stage(row.phase),
        stage_since=row.phase_since.timestamp(),
        created_at=row.created_at.timestamp(),
        state=InstanceState(row.state),
        host=_host(server, evicted),
        reason=_reason(row),
        recent_exits=sum(exit["at"] >= since for exit in row.exits),
        gone=row.pk in gone,
        routable=row.pk in routable,
        in_flight=in_flight.get(row.pk, 0),
    )


def _reason(row: Instance) -> str:
    last = row.exits[-1] if row.exits else {}
    return last.get("cause") or row.reason


def _host(server: ServerRow | None, evicted: frozenset[str]) -> Host:
    if server is None or server.revoked:
        return Host.REVOKED
    if server.id in evicted:
        return Host.EVICTED
    if server.lost_since is not None:
        return Host.LOST
    return Host.DRAINING if server.availability == Availability.DRAINING else Host.SOUND


def _gateway_reports(now: datetime) -> tuple[set[str], dict[str, int]]:
    routable: set[str] = set()
    in_flight: dict[str, int] = defaultdict(int)
    for state in live_gateways(now):
        routable.update(state.routable)
        for instance_id, requests in state.in_flight.items():
            in_flight[instance_id] += requests
    return routable, in_flight


def _gone(instances: list[Instance], servers: dict[str, ServerRow], promised: Mapping[str, Promised]) -> set[str]:
    """Instances on their way out that the agent, at a state without them, no longer reports."""
    stopping: dict[str, set[str]] = defaultdict(set)
    for row in instances:
        server = servers.get(row.server_id or "")
        if row.phase != Phase.STOP or server is None or row.pk in promised.get(server.id, NOTHING).instances:
            continue
        if server.observed_generation >= server.generation:
            stopping[server.id].add(row.pk)
    if not stopping:
        return set()
    gone: set[str] = set()
    for server_id, observed, generation in ServerState.objects.filter(server__in=stopping).values_list(
        "server_id", "observed", "observed_generation"
    ):
        if generation >= servers[server_id].generation:
            gone |= stopping[server_id] - _still_there(observed)
    return gone


def _still_there(observed: dict[str, Any] | None) -> set[str]:
    units = (observed or {}).get("instances", ())
    return {unit["instance_id"] for unit in units if unit["state"] != InstanceState.STOPPED}


def _failed_on(now: datetime) -> dict[int, dict[str, str]]:
    """Revision -> server -> why: where it was given up within the last hour."""
    found: dict[int, dict[str, str]] = defaultdict(dict)
    rows = Instance.objects.filter(
        phase__in=(Phase.STOP, Phase.ENDED),
        phase_since__gte=now - _FAILED_ON_FOR,
        phase_reason__startswith=FAILING,
        server__isnull=False,
    ).values_list("revision_id", "server_id", "phase_reason")
    for revision_id, server_id, reason in rows:
        found[revision_id][server_id] = f"kept failing there: {reason.removeprefix(FAILING)}"
    return found


def _unix(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None
