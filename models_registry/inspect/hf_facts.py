"""What a folder of safetensors files says of its model, with the configuration and the templates beside them.

Source of the keys: `transformers` (config.json, tokenizer_config.json) and `peft` (adapter_config.json).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from models_registry.errors import DamagedModel
from models_registry.inspect.facts import Modality, ModelFacts, active_of, modality_of, summed_types, uses_tools
from models_registry.inspect.safetensors import Tensor, read_header
from models_registry.models import Format

_MAX_CONFIG_BYTES = 4 << 20
_MAX_INDEX_BYTES = 50 << 20
_MAX_TENSORS = 500_000  # of all shards together
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_EXPERTS = re.compile(r"\bexperts\.")  # not those that are shared by all tokens: `shared_experts.`
_PACKED_HELPERS = (".qweight", ".qzeros", ".scales", ".g_idx")
_EXPERT_COUNTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class _Index(msgspec.Struct):
    weight_map: dict[str, str] = {}


class _Template(msgspec.Struct):
    name: str = ""
    template: str = ""


class _Templates(msgspec.Struct):
    """Of tokenizer_config.json, or of chat_template.json: one text, or several with names."""

    chat_template: str | list[_Template] | None = None


def inspect_safetensors(root: Path, paths: Sequence[str]) -> ModelFacts:
    """Facts of the model in folder `root`: headers of the files `paths`, and the configuration beside them.

    Raises DamagedModel, also when a shard is missing.
    """
    _check_shards(root, paths)
    tensors = _tensors(root, paths)
    config = _object(root / "config.json")
    text = _dict(config.get("text_config")) or config  # multimodal models keep the language model's part there
    quantization = _dict(config.get("quantization_config")) or _dict(text.get("quantization_config"))
    heads, hidden_size = _first(text, "num_attention_heads", "n_head"), _first(text, "hidden_size", "n_embd", "d_model")
    architecture, total = _architecture(config), _parameters(tensors, quantization)
    of_experts = _parameters([one for one in tensors if _EXPERTS.search(one.name)], quantization)
    template = chat_template(root)
    return ModelFacts(
        format=Format.SAFETENSORS.value,
        architecture=architecture,
        parameter_count=total,
        active_parameter_count=active_of(
            total, of_experts, _first(text, *_EXPERT_COUNTS), _first(text, *_EXPERTS_USED)
        ),
        modality=modality_of(*_modalities(root, config, architecture)),
        context_tokens=_first(text, "max_position_embeddings", "n_positions", "max_seq_len", "model_max_length"),
        layers=_first(text, "num_hidden_layers", "n_layer", "num_layers"),
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=_first(text, "num_key_value_heads") or heads,
        head_dim=_first(text, "head_dim") or (hidden_size // heads if heads and hidden_size else None),
        quantization=_quantization(tensors, quantization),
        tensor_bytes=sum(tensor.size_bytes for tensor in tensors),
        chat_template=bool(template),
        more={
            **_more(config, text, len(paths)),
            **_rope(text),
            **_adapter(root),
            **({"tools": uses_tools(template)} if template else {}),
        },
        types=summed_types((tensor.dtype, tensor.size_bytes) for tensor in tensors),
    )


def chat_template(root: Path) -> str:
    """The chat template beside the files of a model; the first of several; empty: it has none."""
    path = root / "chat_template.jinja"
    if path.exists() and path.stat().st_size <= _MAX_CONFIG_BYTES:
        return path.read_text("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _decoded(root / name, _Templates, _MAX_INDEX_BYTES).chat_template
        if isinstance(found, list):
            found = next((one.template for one in found if one.name == "default"), found[0].template if found else "")
        if found:
            return found
    return ""


def _tensors(root: Path, paths: Sequence[str]) -> list[Tensor]:
    found: list[Tensor] = []
    for path in sorted(paths):
        found += read_header(root / path)
        if len(found) > _MAX_TENSORS:
            raise DamagedModel(f"The files claim more than {_MAX_TENSORS} tensors together.")
    if not found:
        raise DamagedModel(f"{sorted(paths)[0]} holds no tensors.")
    return found


def _architecture(config: dict[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0] if isinstance(named, list) and named else config.get("model_type", ""))[:80]


def _modalities(root: Path, config: dict[str, Any], architecture: str) -> list[Modality]:
    if architecture.endswith("ForSequenceClassification"):
        labels = config.get("id2label")
        return [Modality.RERANKER if not isinstance(labels, dict) or len(labels) < 2 else Modality.TEXT]
    if (root / "modules.json").exists() or (architecture.endswith("Model") and "LMHead" not in architecture):
        return [Modality.EMBEDDING]  # of sentence-transformers; of transformers: without a head that says tokens
    if architecture.startswith("Whisper"):
        return [Modality.AUDIO]
    senses = {Modality.IMAGE: "vision_config", Modality.AUDIO: "audio_config"}
    return [Modality.TEXT, *(sense for sense, key in senses.items() if _dict(config.get(key)))]


def _rope(text: dict[str, Any]) -> dict[str, Any]:
    """How the context is stretched beyond what the model was trained with."""
    scaling = _dict(text.get("rope_scaling")) or _dict(text.get("rope_parameters"))
    kind = scaling.get("rope_type") or scaling.get("type")
    factor, original = scaling.get("factor"), _first(scaling, "original_max_position_embeddings")
    if not isinstance(kind, str) or kind == "default":
        return {}
    found: dict[str, Any] = {"rope_scaling": kind[:40]}
    if isinstance(factor, int | float) and not isinstance(factor, bool) and 0 < factor < 1e6:
        found["rope_factor"] = float(factor)
        if original:
            found |= {"rope_original_context": original, "rope_context": int(original * factor)}
    return found


def _adapter(root: Path) -> dict[str, Any]:
    """Of a LoRA that goes with another model."""
    config = _object(root / "adapter_config.json")
    if not config:
        return {}
    base, rank = config.get("base_model_name_or_path"), _first(config, "r")
    found: dict[str, Any] = {"adapter": str(config.get("peft_type") or "adapter").lower()[:40]}
    if isinstance(base, str):
        found["base_model"] = base[:200]
    return found | ({"adapter_rank": rank} if rank else {})


def _check_shards(root: Path, paths: Sequence[str]) -> None:
    needed = {Path(path).name for path in paths}
    needed |= set(_decoded(root / "model.safetensors.index.json", _Index, _MAX_INDEX_BYTES).weight_map.values())
    for path in paths:
        if match := _SHARD.fullmatch(Path(path).name):
            count = min(int(match["count"]), 10_000)
            needed |= {f"{match['stem']}-{number:05}-of-{match['count']}.safetensors" for number in range(1, count + 1)}
    missing = sorted(needed - {Path(path).name for path in paths})
    if missing:
        raise DamagedModel(
            f"{len(missing)} files of the model are missing, {missing[0][:120]} first.",
            remedy="Put all files of the model into one folder, then import that folder.",
        )


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file. Raises DamagedModel when it is something else."""
    return _read(path, dict[str, Any], _MAX_CONFIG_BYTES) or {}


def _decoded(path: Path, kind: type[S], most_bytes: int) -> S:
    """What of a JSON file is needed; the rest is passed over, and so is what has another shape."""
    try:
        return _read(path, kind, most_bytes) or kind()
    except msgspec.ValidationError:
        return kind()


def _read(path: Path, kind: type[T], most_bytes: int) -> T | None:
    try:
        if path.stat().st_size > most_bytes:
            raise DamagedModel(f"{path.name} is far too large.")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.ValidationError as error:
        if issubclass(kind, msgspec.Struct):
            raise
        raise DamagedModel(f"{path.name} cannot be read: {error}.") from error
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise DamagedModel(f"{path.name} cannot be read: {str(error)[:200]}.") from error


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(config: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
    return None


def _parameters(tensors: Sequence[Tensor], quantization: dict[str, Any]) -> int:
    """Weights, also where several are packed into one integer (GPTQ and AWQ: `qweight`; MXFP4: `_blocks`)."""
    method = quantization.get("quant_method")
    if method == "mxfp4":
        plain = [one for one in tensors if not one.name.endswith("_scales")]
        return sum(one.elements * (2 if one.name.endswith("_blocks") else 1) for one in plain)
    bits = quantization.get("bits") or quantization.get("w_bit") or 4
    if not isinstance(bits, int) or bits not in (2, 3, 4, 8) or method not in ("gptq", "awq"):
        return sum(tensor.elements for tensor in tensors)
    packed = sum(tensor.elements * 32 // bits for tensor in tensors if tensor.name.endswith(".qweight"))
    return packed + sum(tensor.elements for tensor in tensors if not tensor.name.endswith(_PACKED_HELPERS))


def _quantization(tensors: list[Tensor], quantization: dict[str, Any]) -> str:
    """The method the configuration names (with its bits), else the type that holds the most bytes."""
    method = quantization.get("quant_method")
    if isinstance(method, str) and method:
        bits = quantization.get("bits") or quantization.get("w_bit")
        return f"{method}-{bits}bit"[:40] if isinstance(bits, int) else method[:40]
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size_bytes
    return sizes.most_common(1)[0][0][:40]


def _more(config: dict[str, Any], text: dict[str, Any], parts: int) -> dict[str, Any]:
    found = {
        "model_type": config.get("model_type"),
        "dtype": config.get("torch_dtype") or config.get("dtype") or text.get("torch_dtype"),
        "vocabulary": _first(text, "vocab_size"),
        "sliding_window": _first(text, "sliding_window"),
        "feed_forward": _first(text, "intermediate_size"),
        "experts": _first(text, *_EXPERT_COUNTS),
        "experts_used": _first(text, *_EXPERTS_USED),
        "kv_lora_rank": _first(text, "kv_lora_rank"),
        "parts": parts,
    }
    return {key: value[:200] if isinstance(value, str) else value for key, value in found.items() if value}
