"""An engine that loads torch files, as vLLM does: safetensors where there are any, else `*.bin` and `*.pt`.

Source: vLLM's documentation of `--load-format auto`. It runs nothing; it stands for what an adapter says it loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployments.engines.base import ModelFacts
from deployments.engines.llamacpp import LlamaCpp


class TorchEngine(LlamaCpp):
    name = "torch"

    def check(self, model: ModelFacts, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return self.schema.check(parameters)

    def weights(self, model: ModelFacts) -> tuple[str, ...]:
        paths = [file.path for file in model.files]
        safe = [path for path in paths if path.endswith(".safetensors")]
        return tuple(safe or [path for path in paths if path.endswith((".bin", ".pt"))])
