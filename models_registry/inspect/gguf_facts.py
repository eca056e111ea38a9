"""What the headers of GGUF files say of the model that they make up.

Source of the keys: the GGUF specification of ggml-org, and `gguf-py/gguf/constants.py` of llama.cpp.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models_registry.errors import BadSource, DamagedModel
from models_registry.inspect.facts import Modality, ModelFacts, active_of, modality_of, summed_types, uses_tools
from models_registry.inspect.gguf import TEMPLATE, Header, Skipped, Tensor, read_header
from models_registry.inspect.gguf_types import FILE_TYPES
from models_registry.models import Format

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_EXPERTS = re.compile(r"\.ffn_(?:(?:gate|up|down|gate_up)_exps|(?:gate|up|down)\.\d+)\.")
_RANK_POOLING = 4
_MAX_TENSORS = 200_000  # of all files together
_MAX_ALONE = 32
_ENCODERS = frozenset(
    {
        *("bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "modern-bert"),
        *("t5encoder", "gemma-embedding"),
    }
)


def inspect_gguf(root: Path, paths: Sequence[str]) -> ModelFacts:
    """Facts of the one model that the GGUF files `paths` below `root` make up.

    Raises DamagedModel (also when a part of a split is missing), BadSource when they are several models.
    """
    headers = _headers(root, sorted(paths))
    projectors = [path for path, header in headers.items() if _is_projector(path, header)]
    groups = _models(path for path in headers if path not in projectors)
    if not groups:
        groups = _models(projectors)
    if len(groups) > 1:
        raise BadSource(
            f"The folder holds {len(groups)} models: {', '.join(sorted(parts[0] for parts in groups))}.",
            remedy="Import one of the files, or a folder with the parts of one model only.",
        )
    parts = groups[0]
    facts = _facts(parts[0], [headers[path] for path in parts])
    if projectors and parts[0] not in projectors:
        facts.more["projector"] = projectors[0]
        facts = replace(facts, modality=modality_of(*facts.modality.split(), *_seen_by(headers[projectors[0]])))
    return facts


def _headers(root: Path, paths: Sequence[str]) -> dict[str, Header]:
    """Of all files, so that a few thousand of them are not more than one: what later parts repeat is not kept."""
    alone = [path for path in paths if not _SPLIT.fullmatch(path)]
    if len(alone) > _MAX_ALONE:
        raise BadSource(
            f"The folder holds {len(alone)} GGUF files that are no parts of one another.",
            remedy="Import one of the files, or a folder with the parts of one model only.",
        )
    found: dict[str, Header] = {}
    count = 0
    for path in paths:
        header = read_header(root / path)
        count += len(header.tensors)
        if count > _MAX_TENSORS:
            raise DamagedModel(f"The files claim more than {_MAX_TENSORS} tensors together.")
        split = _SPLIT.fullmatch(path)
        found[path] = replace(header, values={}) if split and int(split["number"]) > 1 else header
    return found


def _seen_by(projector: Header) -> list[Modality]:
    """What a projector takes: of old ones, which do not say it, images."""
    senses = {Modality.IMAGE: "clip.has_vision_encoder", Modality.AUDIO: "clip.has_audio_encoder"}
    return [sense for sense, key in senses.items() if projector.values.get(key) is True] or [Modality.IMAGE]


def _is_projector(path: str, header: Header) -> bool:
    """Whether it is the vision or audio part that goes with a model (`--mmproj`)."""
    return header.values.get("general.architecture") == "clip" or Path(path).name.lower().startswith("mmproj")


def _models(paths: Any) -> list[list[str]]:
    """Paths grouped into models, the parts of a split in order. Raises DamagedModel when one is missing."""
    groups: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for path in paths:
        match = _SPLIT.fullmatch(path)
        name = f"{match['stem']} of {match['count']}" if match else path
        groups.setdefault(name, []).append(path)
        counts[name] = int(match["count"]) if match else 1
    for name, parts in groups.items():
        parts.sort()
        if len(parts) != counts[name]:
            raise DamagedModel(
                f"{parts[0]} is one of {counts[name]} parts, but only {len(parts)} are here.",
                remedy="Put all parts of the model into one folder, then import that folder.",
            )
    return list(groups.values())


def _facts(entry: str, headers: list[Header]) -> ModelFacts:
    values = headers[0].values
    architecture = _text_of(values.get("general.architecture"))
    tensors = [tensor for header in headers for tensor in header.tensors]
    if not architecture or not tensors:
        raise DamagedModel(f"{entry} says nothing of its architecture or has no tensors: it is not a whole model.")

    def own(key: str) -> int | None:
        return _int_of(values.get(f"{architecture}.{key}"))

    template = values.get(TEMPLATE)
    total = sum(tensor.elements for tensor in tensors)
    of_experts = sum(tensor.elements for tensor in tensors if _EXPERTS.search(tensor.name))
    heads, hidden_size = own("attention.head_count"), own("embedding_length")
    head_dim = own("attention.key_length") or (hidden_size // heads if heads and hidden_size else None)
    return ModelFacts(
        format=Format.GGUF.value,
        entry=entry,
        architecture=architecture,
        parameter_count=total,
        active_parameter_count=active_of(total, of_experts, own("expert_count"), own("expert_used_count")),
        modality=modality_of(_purpose(values, architecture)),
        context_tokens=own("context_length"),
        layers=own("block_count"),
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=own("attention.head_count_kv") or heads,
        head_dim=head_dim,
        quantization=_quantization(values, tensors),
        tensor_bytes=sum(tensor.size_bytes for tensor in tensors) or sum(header.data_bytes for header in headers),
        chat_template=TEMPLATE in values,
        more=_more(values, architecture, headers)
        | ({"tools": uses_tools(template)} if isinstance(template, str) else {}),
        types=summed_types((tensor.type_name, tensor.size_bytes) for tensor in tensors),
    )


def _tools(template: Any) -> dict[str, bool]:
    return {"tools": uses_tools(template)} if isinstance(template, str) else {}


def _purpose(values: dict[str, Any], architecture: str) -> Modality:
    """Source: llama.cpp's pooling types (4: rank) and its encoder-only architectures."""
    pooling = _int_of(values.get(f"{architecture}.pooling_type"))
    if pooling == _RANK_POOLING:
        return Modality.RERANKER
    if pooling or architecture in _ENCODERS:
        return Modality.EMBEDDING
    return Modality.TEXT


def _quantization(values: dict[str, Any], tensors: list[Tensor]) -> str:
    """Of the whole file, as its maker named it; else the type that holds the most values."""
    named = FILE_TYPES.get(_int_of(values.get("general.file_type")) or 0) if "general.file_type" in values else None
    if named:
        return named
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[tensor.type_name] += tensor.elements
    return elements.most_common(1)[0][0]


def _more(values: dict[str, Any], architecture: str, headers: list[Header]) -> dict[str, Any]:
    vocabulary = values.get("tokenizer.ggml.tokens")
    found = {
        "name": _text_of(values.get("general.name")),
        "license": _text_of(values.get("general.license")),
        "size_label": _text_of(values.get("general.size_label")),
        "tokenizer": _text_of(values.get("tokenizer.ggml.model")),
        "vocabulary": vocabulary.count if isinstance(vocabulary, Skipped) else None,
        "value_dim": _int_of(values.get(f"{architecture}.attention.value_length")),
        "kv_lora_rank": _int_of(values.get(f"{architecture}.attention.kv_lora_rank")),
        "sliding_window": _int_of(values.get(f"{architecture}.attention.sliding_window")),
        "feed_forward": _int_of(values.get(f"{architecture}.feed_forward_length")),
        "experts": _int_of(values.get(f"{architecture}.expert_count")),
        "experts_used": _int_of(values.get(f"{architecture}.expert_used_count")),
        "rope_scaling": _text_of(values.get(f"{architecture}.rope.scaling.type")),
        "rope_factor": _float_of(values.get(f"{architecture}.rope.scaling.factor")),
        "rope_original_context": _int_of(values.get(f"{architecture}.rope.scaling.original_context_length")),
        "adapter": _text_of(values.get("adapter.type")) if values.get("general.type") == "adapter" else "",
        "base_model": _text_of(values.get("general.base_model.0.repo_url") or values.get("general.base_model.0.name")),
        "pooling": _int_of(values.get(f"{architecture}.pooling_type")),
        "gguf_version": headers[0].version,
        "parts": len(headers),
    }
    return {key: value for key, value in found.items() if value not in (None, "")}


def _text_of(value: Any) -> str:
    return value[:200] if isinstance(value, str) else ""


def _float_of(value: Any) -> float | None:
    return round(value, 6) if isinstance(value, float) and 0 < value < 1e6 else None


def _int_of(value: Any) -> int | None:
    """A count; of a list with one a layer, the largest."""
    if isinstance(value, list):
        numbers = [item for item in value if isinstance(item, int)]
        value = max(numbers, default=None)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None
