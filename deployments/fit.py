"""On how many servers a model version would have room now, with any engine and its default settings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from datetime import datetime

from deployments import engines
from deployments.capacity import read_fleet
from deployments.engines.base import EngineError, ModelFacts
from deployments.estimate import shapes_of
from deployments.scheduler import Fleet, Request, explain
from deployments.specs import model_facts
from models_registry.models import ModelVersion
from models_registry.words import Fit

_MOST_KEPT = 2000
_requests: dict[Hashable, tuple[Request, ...]] = {}  # a version is immutable: what it needs is asked once


def fits_of(versions: Sequence[ModelVersion], now: datetime) -> dict[int, Fit]:
    """By primary key. Three queries at most, however many versions."""
    if not versions:
        return {}
    _load_manifests([one for one in versions if _key(one) not in _requests])
    fleet = read_fleet(now)
    return {one.pk: _fit(_requests_of(one), fleet) for one in versions}


def _fit(requests: tuple[Request, ...], fleet: Fleet) -> Fit:
    found = {name for request in requests for name, reason in explain(request, fleet).items() if not reason}
    return Fit(tuple(sorted(found)), len(fleet.servers), runnable=bool(requests))


def _key(version: ModelVersion) -> Hashable:
    """What the estimates of engines depend on: `inspect_models` may change it."""
    facts = (version.format, version.architecture, version.context_tokens, version.layers, version.parameter_count)
    return (version.pk, version.digest, *facts)


def _requests_of(version: ModelVersion) -> tuple[Request, ...]:
    key = _key(version)
    if key not in _requests:
        if len(_requests) >= _MOST_KEPT:
            _requests.clear()
        facts = model_facts(version)
        found = (_request(name, facts) for name in engines.names())
        _requests[key] = tuple(one for one in found if one is not None)
    return _requests[key]


def _request(engine: str, facts: ModelFacts) -> Request | None:
    adapter = engines.get(engine)
    try:
        shapes = shapes_of(adapter, facts, adapter.check(facts, {}), None)
    except EngineError:
        return None
    return Request(shapes=shapes, program=adapter.program)


def _load_manifests(versions: Sequence[ModelVersion]) -> None:
    """In one query, what a list has left out."""
    lacking = {one.pk: one for one in versions if {"manifest", "metadata"} & one.get_deferred_fields()}
    if lacking:
        rows = ModelVersion.objects.filter(pk__in=lacking).values_list("pk", "manifest", "metadata")
        for pk, manifest, metadata in rows:
            lacking[pk].manifest, lacking[pk].metadata = manifest, metadata
