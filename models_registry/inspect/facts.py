"""What the headers of a model's files say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from models_registry.inspect.scanner import Scan

_MAX_TYPES = 40


@dataclass(frozen=True)
class ModelFacts:
    """Facts of one model; None: the headers do not say."""

    format: str  # models_registry.models.Format
    entry: str = ""
    """Path of the file an engine is pointed at (first part of a split); empty: the folder itself."""
    architecture: str = ""
    parameter_count: int | None = None
    active_parameter_count: int | None = None
    """Used for one token, of a model with experts."""
    modality: str = ""
    """What goes in, or for what it is: words of `Modality`, with spaces between."""
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
    types: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of each type of tensor: `tensors`, and their `bytes`."""
    scan: Scan = field(default_factory=Scan)
    """Files that can run code, and signatures."""


class Modality(StrEnum):
    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    EMBEDDING = "embedding"
    RERANKER = "reranker"


def modality_of(*found: Modality) -> str:
    """In the order of the enumeration, each once."""
    return " ".join(one.value for one in Modality if one in found)


def uses_tools(template: str) -> bool:
    """Whether a chat template (Jinja) knows of tools that the model may call."""
    return re.search(r"\btools\b|\btool_calls?\b", template) is not None


def summed_types(tensors: Iterable[tuple[str, int]]) -> dict[str, dict[str, int]]:
    """Of (type, bytes) of each tensor, the largest type first."""
    found: dict[str, dict[str, int]] = {}
    for name, size_bytes in tensors:
        one = found.setdefault(name, {"tensors": 0, "bytes": 0})
        one["tensors"] += 1
        one["bytes"] += size_bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"])[:_MAX_TYPES])


def active_of(total: int, of_experts: int, experts: int | None, used: int | None) -> int | None:
    """Parameters that one token goes through: all that are no experts', and the share of the experts it is sent to."""
    if not experts or not used or used > experts or not of_experts:
        return None
    return total - of_experts + of_experts * used // experts
