"""Writing what the planner decided: short transactions, each fenced by the leader's lease."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import msgspec
import structlog
from django.db import transaction

from deployments.engines.base import EngineError
from deployments.events import log_event
from deployments.leader import Term, fence
from deployments.leases import Judgement
from deployments.models import Deployment, Event, Instance, Phase, Revision, Severity
from deployments.narrator import Narrator
from deployments.permits import manifest_for
from deployments.planner import Outcome, Subject
from deployments.rollout import Move, Seen, Stage
from deployments.scheduler import Placement
from deployments.snapshot import NOTHING, Promised, ServerRow
from deployments.specs import digest_of, instance_spec, manifest_of
from fleet import hints
from fleet.models import ServerDesired
from fleet.services import mark_found, mark_lost, set_desired
from models_registry.locations import shared_dir
from models_registry.models import ModelVersion
from models_registry.pins import pinned
from wire.manifest import Manifest
from wire.messages import CachePolicy, HeldModel, InstanceSpec, InstanceState

log = structlog.get_logger(__name__)

_PROMISED = (Phase.RUN, Phase.DRAIN)
_REFUSALS_KEPT = 200


def read_promised(known: dict[str, tuple[int, Promised]], servers: Mapping[str, ServerRow]) -> dict[str, Promised]:
    """What is in each server's desired state. `known` is the caller's cache: only newer generations are read."""
    stale = [row.id for row in servers.values() if row.generation and known.get(row.id, (0,))[0] != row.generation]
    if stale:
        for server_id, generation, payload in ServerDesired.objects.filter(server__in=stale).values_list(
            "server_id", "generation", "payload"
        ):
            promised = Promised(
                instances=frozenset(spec["instance_id"] for spec in payload.get("instances", ())),
                held=frozenset(msgspec.convert(one["model"], Manifest).digest for one in payload.get("held", ())),
                cache=msgspec.convert(payload.get("cache") or {}, CachePolicy),
            )
            known[server_id] = (generation, promised)
    return {server_id: promised for server_id, (_, promised) in known.items() if server_id in servers}


def apply_leases(
    judged: Judgement, servers: dict[str, ServerRow], term: Term, narrator: Narrator, now: datetime
) -> None:
    """Mark who is lost and who is back, and tell of it."""
    if not (judged.newly_lost or judged.found or judged.mass_loss_began or judged.mass_loss_ended):
        return
    with transaction.atomic():
        fence(term, now)
        if judged.newly_lost:
            mark_lost(judged.newly_lost, now)
        if judged.found:
            mark_found(judged.found, now)
        narrator.tell_leases(judged, {key: row.name for key, row in servers.items()}, now)
        hints.hint_on_commit(hints.FEED, {"type": "changed"})
    for server_id in judged.newly_lost:
        servers[server_id] = replace(servers[server_id], lost_since=now.timestamp())
    for server_id in judged.found:
        servers[server_id] = replace(servers[server_id], lost_since=None)


def apply_outcome(
    deployment: Deployment, subject: Subject, outcome: Outcome, term: Term, narrator: Narrator, now: datetime
) -> bool:
    """Write one deployment's outcome; whether instances changed. Nothing is written when nothing is to be done."""
    explanation, refusals = outcome.explanation, dict(sorted(outcome.refusals.items())[:_REFUSALS_KEPT])
    told = deployment.explanation != explanation or deployment.refusals != refusals
    finished = deployment.deleted_at is not None and not subject.instances
    news = narrator.news(deployment, subject, outcome)
    if not (outcome.moves or outcome.placements or told or finished or news):
        return False
    with transaction.atomic():
        fence(term, now)
        if finished:
            _remove(deployment)
            return False
        if told:
            Deployment.objects.filter(pk=deployment.pk).update(explanation=explanation, refusals=refusals)
        by_id = {one.id: one for one in subject.instances}
        moves = sorted(outcome.moves, key=lambda move: move.instance_id)  # the order in which reports lock them, too
        moved = [_move(deployment, by_id[move.instance_id], move, narrator, now) for move in moves]
        for placement in outcome.placements:
            _create(deployment, placement, narrator, now)
        narrator.tell(deployment, news, outcome, now)
        if any(moved) or outcome.placements:
            hints.hint_on_commit(hints.FEED, {"type": "changed"})
    narrator.remember(deployment, news)
    return any(moved) or bool(outcome.placements)


def _move(deployment: Deployment, one: Seen, move: Move, narrator: Narrator, now: datetime) -> bool:
    rows = Instance.objects.filter(pk=one.id, phase=one.stage.value)
    values = {"phase": move.to.value, "phase_since": now}
    if move.to is Stage.ENDED:
        values |= {"ended_at": now, "state": InstanceState.STOPPED.value, "port": 0}
    if move.reason and one.stage is not Stage.STOP:  # why it had to go says more than how it went
        values["phase_reason"] = move.reason[:300]
    if not rows.update(**values):
        return False
    log.info(
        "instance.moved",
        deployment=deployment.name,
        instance=one.id,
        server=one.server_name,
        stage=move.to.value,
        reason=move.reason,
    )
    narrator.tell_move(deployment, one, move, now)
    return True


def _create(deployment: Deployment, placement: Placement, narrator: Narrator, now: datetime) -> None:
    instance = Instance.objects.create(
        deployment=deployment,
        revision_id=deployment.revision_id,
        server_id=placement.server_id,
        gpu_indexes=list(placement.gpu_indexes),
        memory_bytes=placement.memory_bytes,
        gpu_memory_bytes=placement.gpu_memory_bytes,
        placement_reason=placement.reason,
        phase_since=now,
    )
    log.info("instance.created", deployment=deployment.name, instance=instance.pk, server=placement.server_name)
    narrator.tell_placed(deployment, instance, placement, now)


def _remove(deployment: Deployment) -> None:
    """The row of a deleted deployment goes; its events stay, without it."""
    Event.objects.filter(deployment=deployment).update(deployment=None)
    Deployment.objects.filter(pk=deployment.pk).update(revision=None)
    deployment.delete()
    log.info("deployment.removed", deployment=deployment.name)


def sync_desired(
    instances: list[Instance],
    servers: Mapping[str, ServerRow],
    promised: Mapping[str, Promised],
    held: Mapping[str, Mapping[str, Held]],
    term: Term,
    share: float,
    now: datetime,
) -> None:
    """Bring each server's desired state to what should be there; states that agree are not touched.

    `held`: as `read_held`.
    It stops after `share` of a lease: the next pass goes on.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for instance in instances:
        if instance.phase in _PROMISED and instance.server_id in servers:
            wanted[instance.server_id].add(instance.pk)
    until = term.share_from_now(share)
    for row in servers.values():
        if row.revoked or Promised(frozenset(wanted[row.id]), frozenset(held.get(row.id, ())), row.cache) == (
            promised.get(row.id, NOTHING)
        ):
            continue
        if term.clock() >= until:
            return
        with transaction.atomic():
            fence(term, now)
            specs = _specs(row.id, wanted[row.id], now)
            set_desired(row.id, specs, now, held=_models_of(held.get(row.id, {})), cache=row.cache)


@dataclass(frozen=True)
class Held:
    """A version to be held. `revision`: of which it is the model; None: it is pinned."""

    version_id: int
    revision: Revision | None = None


def read_held(
    servers: Mapping[str, ServerRow], ahead: Iterable[tuple[Deployment, frozenset[str]]]
) -> dict[str, dict[str, Held]]:
    """What servers should have beside their instances' models: pinned, or fetched ahead of a rollout.

    Server -> digest -> which. `ahead`: servers that should have a deployment's wanted version soon. Only the digests
    are made here, in every pass; the manifests when a server's state is written.
    """
    held: dict[str, dict[str, Held]] = defaultdict(dict)
    for version_id, digest, flagged, server_id in pinned():
        if flagged and (version := ModelVersion.objects.filter(pk=version_id).first()):
            digest = _pinned_manifest(version).digest
        for server in (server_id,) if server_id else servers:
            held[server][digest] = Held(version_id)
    for deployment, server_ids in ahead:
        for server in server_ids:
            revision = deployment.revision
            held[server][digest_of(revision)] = Held(revision.model_version_id, revision)
    return held


def _pinned_manifest(version: ModelVersion) -> Manifest:
    """Nothing that can run code is brought anywhere by a pin."""
    return manifest_for(version, ())


def _models_of(held: Mapping[str, Held]) -> tuple[HeldModel, ...]:
    """As they travel, by digest; a version that was deleted just now is left out."""
    versions = ModelVersion.objects.select_related("model").in_bulk({one.version_id for one in held.values()})
    return tuple(
        HeldModel(
            model=manifest_of(one.revision) if one.revision else _pinned_manifest(version),
            model_name=str(version),
            shared_dir=shared_dir(version),
        )
        for _, one in sorted(held.items())
        if (version := versions.get(one.version_id)) is not None
    )


def _specs(server_id: str, wanted: set[str], now: datetime) -> tuple[InstanceSpec, ...]:
    """Specs already promised stay as they are, so that a newer release of this code restarts no engine."""
    row = ServerDesired.objects.filter(server_id=server_id).values_list("payload", flat=True).first()
    kept = {spec["instance_id"]: spec for spec in (row or {}).get("instances", ())}
    specs = {key: msgspec.convert(kept[key], InstanceSpec) for key in wanted if key in kept}
    missing = Instance.objects.filter(pk__in=wanted - specs.keys()).select_related(
        "deployment", "revision__model_version__model"
    )
    for instance in missing:
        try:
            specs[instance.pk] = instance_spec(instance)
        except EngineError as error:
            _refuse(instance, error.message, now)
    return tuple(specs[key] for key in sorted(specs))


def _refuse(instance: Instance, reason: str, now: datetime) -> None:
    """An instance whose spec cannot be made (a newer release takes it no more) has failed; all others go on."""
    rows = Instance.objects.filter(pk=instance.pk).exclude(state=InstanceState.FAILED.value)
    if rows.update(state=InstanceState.FAILED.value, reason=reason, state_since=now, observed_at=now):
        log_event(
            "instance.failed",
            f"{instance.deployment.name} cannot be run: {reason}",
            severity=Severity.ERROR,
            remedy="Update the deployment's parameters or model version.",
            deployment_id=instance.deployment_id,
            instance_id=instance.pk,
            server_id=instance.server_id,
            now=now,
        )
