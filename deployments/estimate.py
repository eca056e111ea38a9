"""From an adapter's estimate to the shapes in which an instance may be placed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployments.engines.base import Adapter, ModelFacts
from deployments.scheduler import Shape

_AUTO_GPUS = (1, 2, 4, 8, 0)


def shapes_of(
    adapter: Adapter, model: ModelFacts, parameters: Mapping[str, Any], gpus: int | None
) -> tuple[Shape, ...]:
    """Shapes in order of preference. `gpus` None: as few GPUs as hold it, or the CPU where no server has one.

    Weights and cache are taken as spread evenly over the GPUs, which is what llama.cpp's split by layer does.
    """
    return tuple(_shape(adapter, model, parameters, count) for count in (_AUTO_GPUS if gpus is None else (gpus,)))


def _shape(adapter: Adapter, model: ModelFacts, parameters: Mapping[str, Any], gpus: int) -> Shape:
    found = adapter.estimate(model, parameters, gpus)
    each = -(-found.gpu_bytes // gpus) if gpus else 0
    return Shape(gpus=gpus, host_bytes=found.host_bytes, gpu_bytes_each=each)
