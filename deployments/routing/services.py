"""Verbs of routes, providers and prices. Gateways have a change within a second."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import structlog
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError

from deployments.errors import (
    InvalidPrice,
    InvalidProvider,
    InvalidRoute,
    NameInUse,
    ProviderInUse,
    RouteInUse,
)
from deployments.models import PUBLIC_NAME, Deployment, ModelPrice, Provider, Route, RouteTarget, TargetKind
from fleet import hints
from fleet.sealed import seal
from wire.feed import ENDPOINT_GROUPS

log = structlog.get_logger(__name__)

MOST_TARGETS = 50
HEAVIEST = 10_000
NANO_PER_1000 = 1_000_000
"""One unit of money per million tokens, as nano-units per 1,000 tokens."""
PRICE_PLACES = 6
_HIGHEST_PRICE = Decimal(1_000_000)
_DEEPEST = 8  # as far as gateways follow


@dataclass(frozen=True)
class TargetSpec:
    """One of `deployment`, `route` (their public names) and `provider` with its `model`."""

    kind: str = TargetKind.SHARE.value
    weight: int = 1
    deployment: str = ""
    route: str = ""
    provider: str = ""
    model: str = ""


# ------------------------------------------------------------------------------------------------ routes


def create_route(
    name: str, targets: Sequence[TargetSpec], *, description: str = "", listed: bool = True, actor: str = ""
) -> Route:
    """Raises InvalidRoute, NameInUse."""
    if not isinstance(name, str) or not PUBLIC_NAME.regex.fullmatch(name):
        raise InvalidRoute(f"name: {PUBLIC_NAME.message}")
    try:
        with transaction.atomic():
            if Deployment.objects.filter(name=name, deleted_at__isnull=True).exists():
                raise NameInUse(f"there is a deployment {name!r} already")
            route = Route.objects.create(name=name, description=description, listed=listed)
            _set_targets(route, targets)
            _hint()
    except IntegrityError as error:
        raise NameInUse(f"there is a route {name!r} already") from error
    log.info("route.created", route=name, targets=len(targets), actor=actor)
    return route


def update_route(route: Route, *, actor: str = "", **changes: Any) -> Route:
    """Change `description`, `listed` and `targets` (all of them anew). Raises InvalidRoute, RouteInUse."""
    targets = changes.pop("targets", None)
    values = {field: changes.pop(field) for field in ("description", "listed") if field in changes}
    if changes:
        raise TypeError(f"not a field of a route: {', '.join(changes)}")
    with transaction.atomic():
        row = Route.objects.select_for_update().filter(pk=route.pk).first()
        if row is None:
            raise InvalidRoute(f"route {route.name!r} is gone")
        for field, value in values.items():
            setattr(row, field, value)
        row.save(update_fields=[*values, "updated_at"])
        if targets is not None:
            _set_targets(row, targets)
        _hint()
    log.info("route.changed", route=row.name, actor=actor)
    return row


def delete_route(route: Route, *, actor: str = "") -> None:
    """Raises RouteInUse."""
    try:
        with transaction.atomic():
            route.delete()
            _hint()
    except ProtectedError as error:
        users = ", ".join(sorted({row.route.name for row in route.routed_by.select_related("route")}))
        raise RouteInUse(f"route {route.name!r} is used by {users}") from error
    log.info("route.deleted", route=route.name, actor=actor)


def routes_of_deployment(deployment: Deployment) -> list[str]:
    """Names of the routes that lead to it."""
    rows = RouteTarget.objects.filter(deployment=deployment).order_by("route__name")
    return list(dict.fromkeys(rows.values_list("route__name", flat=True)))


def _set_targets(route: Route, specs: Sequence[TargetSpec]) -> None:
    if not any(spec.kind == TargetKind.SHARE and spec.weight > 0 for spec in specs):
        raise InvalidRoute("a route needs at least one share with a weight above 0")
    if len(specs) > MOST_TARGETS:
        raise InvalidRoute(f"a route has at most {MOST_TARGETS} targets")
    rows = [_target(route, spec, position) for position, spec in enumerate(specs)]
    found = [(row.deployment_id, row.to_id, row.provider_id, row.provider_model) for row in rows]
    if len(set(found)) < len(found):
        raise InvalidRoute("a target is there twice")
    route.targets.all().delete()
    for row in rows:
        row.save(force_insert=True)  # one by one: the audit log sees each
    _check_no_circle(route)


def _target(route: Route, spec: TargetSpec, position: int) -> RouteTarget:
    named = [name for name in ("deployment", "route", "provider") if getattr(spec, name)]
    if len(named) != 1:
        raise InvalidRoute(f"target {position + 1}: name exactly one of deployment, route and provider")
    if spec.kind not in TargetKind.values:
        raise InvalidRoute(f"target {position + 1}: kind is share or fallback, not {spec.kind!r}")
    if isinstance(spec.weight, bool) or not isinstance(spec.weight, int) or not 0 <= spec.weight <= HEAVIEST:
        raise InvalidRoute(f"target {position + 1}: the weight must be a whole number from 0 to {HEAVIEST}")
    row = RouteTarget(route=route, kind=spec.kind, position=position, weight=spec.weight)
    if spec.deployment:
        row.deployment = Deployment.objects.filter(name=spec.deployment, deleted_at__isnull=True).first()
    elif spec.route:
        row.to = Route.objects.filter(name=spec.route).first()
    else:
        row.provider = Provider.objects.filter(name=spec.provider).first()
        row.provider_model = spec.model.strip()
        if not 1 <= len(row.provider_model) <= 200 or not row.provider_model.isprintable():
            raise InvalidRoute(f"target {position + 1}: the provider's model needs 1 to 200 printable characters")
    if not (row.deployment or row.to or row.provider):
        raise InvalidRoute(f"target {position + 1}: there is no {named[0]} {getattr(spec, named[0])!r}")
    return row


def _check_no_circle(route: Route) -> None:
    """Raises InvalidRoute when the route leads back to itself, or further than gateways follow."""
    leads_to: dict[int, list[int]] = {}
    for start, end in RouteTarget.objects.filter(to__isnull=False).values_list("route_id", "to_id"):
        leads_to.setdefault(start, []).append(end)
    level, depth = {route.pk}, 0
    while level:
        level = {end for start in level for end in leads_to.get(start, ())}
        depth += 1
        if route.pk in level:
            raise InvalidRoute(f"route {route.name!r} would lead back to itself")
        if depth >= _DEEPEST:
            raise InvalidRoute(f"routes may lead to routes at most {_DEEPEST} deep")


# ------------------------------------------------------------------------------------------------ providers


def create_provider(
    name: str, base_url: str, *, api_key: str = "", endpoints: Sequence[str] = (), actor: str = ""
) -> Provider:
    """A service outside; its key is kept sealed. Raises InvalidProvider, NameInUse."""
    provider = Provider(name=_slug(name), base_url=_base_url(base_url), endpoints=_endpoints(endpoints))
    provider.sealed_key = seal(_api_key(api_key))
    try:
        with transaction.atomic():
            provider.save(force_insert=True)
            _hint()
    except IntegrityError as error:
        raise NameInUse(f"there is a provider {name!r} already") from error
    log.info("provider.created", provider=provider.name, actor=actor)
    return provider


def update_provider(provider: Provider, *, actor: str = "", **changes: Any) -> Provider:
    """Change `base_url`, `api_key` and `endpoints`. Raises InvalidProvider."""
    values: dict[str, Any] = {}
    if "base_url" in changes:
        values["base_url"] = _base_url(changes.pop("base_url"))
    if "api_key" in changes:
        values["sealed_key"] = seal(_api_key(changes.pop("api_key")))
    if "endpoints" in changes:
        values["endpoints"] = _endpoints(changes.pop("endpoints"))
    if changes:
        raise TypeError(f"not a field of a provider: {', '.join(changes)}")
    for field, value in values.items():
        setattr(provider, field, value)
    with transaction.atomic():
        provider.save(update_fields=[*values, "updated_at"])
        _hint()
    log.info("provider.changed", provider=provider.name, fields=sorted(values), actor=actor)
    return provider


def delete_provider(provider: Provider, *, actor: str = "") -> None:
    """Raises ProviderInUse."""
    try:
        with transaction.atomic():
            provider.delete()
            _hint()
    except ProtectedError as error:
        users = ", ".join(sorted({row.route.name for row in provider.routed_by.select_related("route")}))
        raise ProviderInUse(f"provider {provider.name!r} is used by {users}") from error
    log.info("provider.deleted", provider=provider.name, actor=actor)


def _slug(name: str) -> str:
    if not 1 <= len(name) <= 60 or not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise InvalidProvider("the name needs 1 to 60 letters, digits, '-' and '_'")
    return name


def _base_url(text: str) -> str:
    try:
        parts = urlsplit(text.strip())
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidProvider(f"{text[:100]!r} is not an address") from error
    if parts.scheme not in ("https", "http") or not host or parts.query or parts.fragment or parts.username:
        raise InvalidProvider(f"{text[:100]!r} is not an address like https://api.example.com/v1")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InvalidProvider("without https the provider's key would be read on the way")
    return text.strip().rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _api_key(text: str) -> str:
    text = text.strip()
    if len(text) > 1000 or not text.isascii() or not text.isprintable():
        raise InvalidProvider("the key must have at most 1,000 printable ASCII characters")
    return text


def _endpoints(groups: Sequence[str]) -> list[str]:
    if unknown := sorted(set(groups) - set(ENDPOINT_GROUPS)):
        raise InvalidProvider(
            f"not groups of endpoints: {', '.join(unknown)[:200]}; known: {', '.join(ENDPOINT_GROUPS)}"
        )
    return [group for group in ENDPOINT_GROUPS if group in groups] or ["chat"]


# ------------------------------------------------------------------------------------------------ prices


def set_price(name: str, *, prompt: Decimal, completion: Decimal, cached: Decimal | None = None) -> ModelPrice:
    """Price of a public name per million tokens, from now on; `cached` None: as other prompt tokens.

    Raises InvalidPrice.
    """
    if not isinstance(name, str) or not PUBLIC_NAME.regex.fullmatch(name):
        raise InvalidPrice(f"name: {PUBLIC_NAME.message}")
    values = {
        "prompt": _nano(prompt),
        "cached": _nano(prompt if cached is None else cached),
        "completion": _nano(completion),
    }
    with transaction.atomic():
        price, _ = ModelPrice.objects.update_or_create(name=name, defaults=values)
        _hint()
    log.info("price.set", model=name, **values)
    return price


def remove_price(price: ModelPrice) -> None:
    """Its tokens cost nothing from now on."""
    with transaction.atomic():
        price.delete()
        _hint()
    log.info("price.removed", model=price.name)


def per_million(nano_per_1000: int) -> Decimal:
    """What a person reads: units of money per million tokens, without trailing zeros."""
    amount = (Decimal(nano_per_1000) / NANO_PER_1000).normalize()
    return amount.quantize(Decimal(1)) if amount == amount.to_integral_value() else amount


def _nano(per_million_tokens: Decimal) -> int:
    if not per_million_tokens.is_finite() or not 0 <= per_million_tokens <= _HIGHEST_PRICE:
        raise InvalidPrice(f"a price lies between 0 and {_HIGHEST_PRICE:,} per million tokens")
    return int(per_million_tokens * NANO_PER_1000)


def _hint() -> None:
    hints.hint_on_commit(hints.FEED, {"type": "changed"})
