"""The routes of the gateways: public model name -> ready instances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from deployments import engines
from deployments.models import Deployment, Instance, Phase
from deployments.routing.feed import prices, public_routes
from deployments.specs import model_facts
from deployments.status import statuses
from fleet.models import ServerState
from wire.feed import FeedRoute, Price, Target
from wire.messages import InstanceState


def feed_routes() -> tuple[FeedRoute, ...]:
    """One route a deployment that is not deleted, and those of `deployments.routing`, sorted by name.

    At most seven queries, however many there are.

    A target is an instance that should run, is ready, and whose server is not revoked. One on a lost server is kept
    only while nothing else serves: its engine may well be alive behind a cut link.
    """
    deployments = list(
        Deployment.objects.filter(deleted_at__isnull=True)
        .select_related("revision__model_version__model")
        .order_by("name")
    )
    targets = _targets()
    waiting = [row for row in deployments if not targets.get(row.pk)]
    reasons = {pk: f"{found.state}: {found.reason}".rstrip(": ") for pk, found in statuses(waiting).items()}
    priced = prices()
    own = {
        row.name: _route(row, tuple(targets.get(row.pk, ())), reasons.get(row.pk, ""), priced.get(row.name))
        for row in deployments
    }
    return tuple(sorted([*own.values(), *public_routes(own, priced)], key=lambda route: route.id))


def _route(deployment: Deployment, targets: tuple[Target, ...], reason: str, price: Price | None) -> FeedRoute:
    context_tokens: int | None = None
    endpoints: tuple[str, ...] = ("chat", "completions", "tokenize")
    if deployment.revision is not None and deployment.revision.engine in engines.names():
        adapter = engines.get(deployment.revision.engine)
        parameters = deployment.revision.parameters
        context_tokens = adapter.max_context_tokens(model_facts(deployment.revision.model_version), parameters)
        endpoints = adapter.endpoints(parameters)
    return FeedRoute(
        id=deployment.name,
        created=int(deployment.created_at.timestamp()),
        targets=targets,
        max_context_tokens=context_tokens,
        reason=reason if not targets else "",
        endpoints=endpoints,
        price=price,
    )


def _targets() -> dict[int, list[Target]]:
    ready = list(
        Instance.objects.filter(
            phase=Phase.RUN,
            state=InstanceState.READY.value,
            port__gt=0,
            server__revoked_at__isnull=True,
            deployment__running=True,
            deployment__deleted_at__isnull=True,
        )
        .order_by("id")
        .values_list(
            "deployment_id", "deployment__name", "id", "server_id", "port", "revision__engine", "revision__parameters"
        )
    )
    states = (
        {
            state.server_id: state
            for state in ServerState.objects.filter(server__in={row[3] for row in ready}).only(
                "server_id", "host_id", "lost_at", "facts"
            )
        }
        if ready
        else {}
    )
    sound: dict[int, list[Target]] = defaultdict(list)
    doubtful: dict[int, list[Target]] = defaultdict(list)
    for deployment_id, name, instance_id, server_id, port, engine, parameters in ready:
        state = states.get(server_id)
        if state is None:
            continue
        chosen = doubtful if state.lost_at else sound
        chosen[deployment_id].append(_target(state, name, instance_id, port, _slots(engine, parameters)))
    return dict(_best(sound, doubtful))


def _best(sound: dict[int, list[Target]], doubtful: dict[int, list[Target]]) -> Iterator[tuple[int, list[Target]]]:
    for deployment_id in sound.keys() | doubtful.keys():
        yield deployment_id, sound.get(deployment_id) or doubtful[deployment_id]


def _slots(engine: str, parameters: dict[str, Any]) -> int | None:
    return engines.get(engine).slots(parameters) if engine in engines.names() else None


def _target(state: ServerState, engine_model: str, instance_id: str, port: int, slots: int | None) -> Target:
    facts = state.facts or {}
    return Target(
        instance_id=instance_id,
        server_id=state.server_id,
        host_id=facts.get("host_id") or state.host_id,
        port=port,
        relay_addresses=tuple(facts.get("addresses", ())),
        relay_port=facts.get("relay_port", 0),
        engine_model=engine_model,
        slots=slots,
    )
