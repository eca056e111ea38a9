"""A dry run: what an instance would need, where each would go, and why not elsewhere. Never writes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deployments import engines
from deployments.capacity import read_fleet
from deployments.engines.base import Estimate
from deployments.estimate import shapes_of
from deployments.scheduler import Fleet, Placement, Refusal, Request, Shape, explain, place_many
from deployments.specs import SpecFields, check_replicas, check_spec, model_facts, version_of
from models_registry.models import ModelAlias, ModelVersion
from wire.engine import RuntimeKind


@dataclass(frozen=True)
class ServerAnswer:
    """`reason`: why an instance does not fit there now; empty when it does."""

    server: str
    fits: bool
    reason: str
    instances: int  # of those asked for that would go there


@dataclass(frozen=True)
class Preview:
    """`placed` of `replicas` instances have a place; `summary` says so in a sentence."""

    estimate: Estimate
    gpus: int
    max_context_tokens: int | None
    replicas: int
    placed: int
    servers: tuple[ServerAnswer, ...]
    summary: str


def preview(
    *,
    model_version: ModelVersion | None = None,
    alias: ModelAlias | None = None,
    engine: str = "llamacpp",
    replicas: int = 1,
    parameters: dict[str, Any] | None = None,
    runtime: str = "auto",
    image: str = "",
    placement: dict[str, Any] | None = None,
    now: datetime,
) -> Preview:
    """What `create_deployment` with these fields would lead to. Raises what that raises."""
    check_replicas(replicas)
    model_version = version_of(model_version, alias)
    fields = SpecFields(model_version.pk, engine, runtime, image, parameters or {}, placement or {})
    fields = check_spec(model_version, fields)
    adapter, facts = engines.get(engine), model_facts(model_version)
    shapes = shapes_of(adapter, facts, fields.parameters, fields.placement.get("gpus"))
    fleet = read_fleet(now)
    request = Request(
        shapes=shapes,
        program=adapter.program,
        runtime=RuntimeKind(runtime),
        labels=fields.placement.get("labels") or {},
        servers=frozenset(fields.placement.get("servers") or ()),
    )
    reasons = explain(request, fleet)
    found = place_many(request, replicas, fleet)
    placements, refusal = found.placements, found.refusal
    gpus = len(placements[0].gpu_indexes) if placements else _likely_gpus(shapes, fleet)
    counts: dict[str, int] = {}
    for placed in placements:
        counts[placed.server_name] = counts.get(placed.server_name, 0) + 1
    return Preview(
        estimate=adapter.estimate(facts, fields.parameters, gpus),
        gpus=gpus,
        max_context_tokens=adapter.max_context_tokens(facts, fields.parameters),
        replicas=replicas,
        placed=len(placements),
        servers=tuple(
            ServerAnswer(name, not reason, reason, counts.get(name, 0)) for name, reason in sorted(reasons.items())
        ),
        summary=_summary(placements, replicas, refusal, counts),
    )


def _likely_gpus(shapes: tuple[Shape, ...], fleet: Fleet) -> int:
    """GPUs to show the estimate for when nothing was placed."""
    has_gpus = any(server.gpus for server in fleet.servers.values())
    return shapes[0].gpus if has_gpus or len(shapes) == 1 else 0


def _summary(placements: tuple[Placement, ...], replicas: int, refusal: Refusal | None, counts: dict[str, int]) -> str:
    where = ", ".join(f"{count} on {name}" for name, count in sorted(counts.items()))
    if refusal is None:
        return f"All {replicas} would be placed: {where}." if placements else "Nothing to place: 0 replicas."
    done = f"{len(placements)} of {replicas} would be placed ({where}); the next" if placements else "It"
    return f"{done} {refusal.summary()}."
