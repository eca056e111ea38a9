"""What the headers of a model's files say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelFacts:
    """Facts of one model; None: the headers do not say."""

    format: str  # models_registry.models.Format
    entry: str = ""
    """Path of the file an engine is pointed at (first part of a split); empty: the folder itself."""
    architecture: str = ""
    parameter_count: int | None = None
    context_tokens: int | None = None
    layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    quantization: str = ""
    tensor_bytes: int = 0
    chat_template: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    """Small values only, JSON."""
