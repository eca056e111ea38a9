"""Registry of the engines that a deployment can run on."""

from __future__ import annotations

from deployments.engines.base import Adapter, UnknownEngine
from deployments.engines.llamacpp import LlamaCpp

_ADAPTERS: dict[str, Adapter] = {adapter.name: adapter for adapter in (LlamaCpp(),)}


def names() -> tuple[str, ...]:
    """Names of all engines, sorted."""
    return tuple(sorted(_ADAPTERS))


def get(name: str) -> Adapter:
    """The adapter of an engine. Raises UnknownEngine."""
    try:
        return _ADAPTERS[name]
    except KeyError:
        raise UnknownEngine(f"there is no engine {name!r}; known: {', '.join(names())}") from None
