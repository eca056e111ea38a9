"""Routes, providers and prices as gateways need them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from deployments.models import ModelPrice, Route, RouteTarget, TargetKind
from fleet.sealed import Unreadable, unseal
from wire.feed import ENDPOINT_GROUPS, FeedRoute, Price, Provider, Split

log = structlog.get_logger(__name__)

NOTHING_READY = "none of the targets of this route is ready"


def prices() -> dict[str, Price]:
    """By public name. One query."""
    return {
        row.name: Price(prompt=row.prompt, cached=row.cached, completion=row.completion)
        for row in ModelPrice.objects.all()
    }


def public_routes(own: Mapping[str, FeedRoute], priced: Mapping[str, Price]) -> Iterable[FeedRoute]:
    """Routes to others, and to each provider's model; `own` are those of deployments. Two queries."""
    routes = list(Route.objects.order_by("name"))
    if not routes:
        return ()
    targets: dict[int, list[RouteTarget]] = {}
    for target in RouteTarget.objects.select_related("deployment", "to", "provider").order_by("route_id", "position"):
        targets.setdefault(target.route_id, []).append(target)
    outside = {leaf.id: leaf for rows in targets.values() for leaf in _outside(rows)}
    made = [_route(route, targets.get(route.pk, []), priced) for route in routes]
    known = {**own, **outside, **{route.id: route for route in made}}
    return [*outside.values(), *(_completed(route, known) for route in made)]


def _outside(rows: Iterable[RouteTarget]) -> Iterable[FeedRoute]:
    for row in rows:
        if row.provider is None:
            continue
        try:
            key = unseal(row.provider.sealed_key)
        except Unreadable as error:
            log.error("provider.key_unreadable", provider=row.provider.name, remedy=error.remedy)
            continue
        yield FeedRoute(
            id=_id(row),
            created=int(row.provider.created_at.timestamp()),
            provider=Provider(base_url=row.provider.base_url, api_key=key, model=row.provider_model),
            listed=False,
            endpoints=tuple(row.provider.endpoints),
        )


def _id(row: RouteTarget) -> str:
    """Of the route a target leads to; one of a provider has a name that no client can ask for and nobody can give."""
    if row.deployment is not None:
        return row.deployment.name
    if row.to is not None:
        return row.to.name
    return f"@{row.provider.name}/{row.provider_model}" if row.provider is not None else ""


def _route(route: Route, rows: list[RouteTarget], priced: Mapping[str, Price]) -> FeedRoute:
    return FeedRoute(
        id=route.name,
        created=int(route.created_at.timestamp()),
        splits=tuple(Split(route=_id(row), weight=row.weight) for row in rows if row.kind == TargetKind.SHARE),
        fallbacks=tuple(_id(row) for row in rows if row.kind == TargetKind.FALLBACK),
        listed=route.listed,
        price=priced.get(route.name),
    )


def _completed(route: FeedRoute, known: Mapping[str, FeedRoute]) -> FeedRoute:
    """With what its leaves offer together: a request that one of them can take is let in, and finds it."""
    leaves = list(_leaves(route, known, frozenset()))
    offered = {group for leaf in leaves for group in leaf.endpoints}
    contexts = [leaf.max_context_tokens for leaf in leaves]
    longest = max((tokens for tokens in contexts if tokens is not None), default=None)
    return FeedRoute(
        id=route.id,
        created=route.created,
        splits=route.splits,
        fallbacks=route.fallbacks,
        listed=route.listed,
        price=route.price,
        max_context_tokens=None if None in contexts else longest,
        endpoints=tuple(group for group in ENDPOINT_GROUPS if group in offered),
        reason="" if any(leaf.targets or leaf.provider for leaf in leaves) else NOTHING_READY,
    )


def _leaves(route: FeedRoute, known: Mapping[str, FeedRoute], above: frozenset[str]) -> Iterable[FeedRoute]:
    if route.id in above:
        return
    names = [split.route for split in route.splits] + list(route.fallbacks)
    if not names:
        yield route
    for name in names:
        if name in known:
            yield from _leaves(known[name], known, above | {route.id})
