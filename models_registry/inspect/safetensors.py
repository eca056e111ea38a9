"""Reader of safetensors headers and of the `config.json` beside them. Tensor data is never touched.

Source: the safetensors format description of Hugging Face (8 bytes of little-endian length, JSON, data).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from models_registry.errors import DamagedModel
from models_registry.inspect.facts import ModelFacts
from models_registry.models import Format

_MAX_HEADER_BYTES = 25 << 20  # the format allows 100 MB; the largest known are near 1 MB a shard
_MAX_JSON_BYTES = 25 << 20
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    elements: int
    size_bytes: int


def read_header(path: Path) -> tuple[Tensor, ...]:
    """Raises DamagedModel when the header is cut, is no JSON, or contradicts the file's size."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 or length > min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise DamagedModel(f"{path.name} ends within its header, or is not a safetensors file.")
        content = file.read(length)
    try:
        entries = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        return tuple(
            _tensor(path.name, name, msgspec.json.decode(raw, type=_Entry), size_bytes - 8 - length)
            for name, raw in entries.items()
        )
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedModel(f"{path.name} has a header that cannot be read: {error}.") from error


def _tensor(file_name: str, name: str, entry: _Entry, data_bytes: int) -> Tensor:
    start, end = entry.data_offsets
    if len(entry.shape) > 32 or any(not 0 <= size < 1 << 50 for size in entry.shape):
        raise DamagedModel(f"{file_name} has an impossible tensor {name[:80]!r}.")
    elements = math.prod(entry.shape)
    if not 0 <= start <= end <= data_bytes:
        raise DamagedModel(f"{file_name} ends before its tensor {name[:80]!r} does: it was cut, or altered.")
    bits = _BITS.get(entry.dtype)
    if bits is not None and elements * bits != (end - start) * 8:
        raise DamagedModel(f"{file_name} has a tensor {name[:80]!r} whose shape and size differ.")
    return Tensor(name, entry.dtype, elements, end - start)


def inspect_safetensors(root: Path, paths: Sequence[str]) -> ModelFacts:
    """Facts of the model in folder `root`: headers of the files `paths`, and the configuration beside them.

    Raises DamagedModel, also when a shard is missing.
    """
    _check_shards(root, paths)
    tensors = [tensor for path in sorted(paths) for tensor in read_header(root / path)]
    if not tensors:
        raise DamagedModel(f"{sorted(paths)[0]} holds no tensors.")
    config = _json(root / "config.json")
    text = _dict(config.get("text_config")) or config  # multimodal models keep the language model's part there
    quantization = _dict(config.get("quantization_config")) or _dict(text.get("quantization_config"))
    heads, hidden_size = _first(text, "num_attention_heads", "n_head"), _first(text, "hidden_size", "n_embd", "d_model")
    architectures = config.get("architectures")
    return ModelFacts(
        format=Format.SAFETENSORS.value,
        architecture=str(architectures[0])[:80]
        if isinstance(architectures, list) and architectures
        else str(config.get("model_type", ""))[:80],
        parameter_count=_parameters(tensors, quantization),
        context_tokens=_first(text, "max_position_embeddings", "n_positions", "max_seq_len", "model_max_length"),
        layers=_first(text, "num_hidden_layers", "n_layer", "num_layers"),
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=_first(text, "num_key_value_heads") or heads,
        head_dim=_first(text, "head_dim") or (hidden_size // heads if heads and hidden_size else None),
        quantization=_quantization(tensors, quantization),
        tensor_bytes=sum(tensor.size_bytes for tensor in tensors),
        chat_template=_has_chat_template(root),
        more=_more(config, text, len(paths)),
    )


def _check_shards(root: Path, paths: Sequence[str]) -> None:
    needed = {Path(path).name for path in paths}
    index = _dict(_json(root / "model.safetensors.index.json").get("weight_map"))
    needed |= {name for name in index.values() if isinstance(name, str)}
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


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file. Raises DamagedModel when it is something else."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise DamagedModel(f"{path.name} is far too large.")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedModel(f"{path.name} cannot be read: {error}.") from error


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(config: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
    return None


def _parameters(tensors: list[Tensor], quantization: dict[str, Any]) -> int:
    """Weights, also where several are packed into one integer (GPTQ and AWQ: `qweight`)."""
    bits = quantization.get("bits") or quantization.get("w_bit") or 4
    if not isinstance(bits, int) or bits not in (2, 3, 4, 8) or quantization.get("quant_method") not in ("gptq", "awq"):
        return sum(tensor.elements for tensor in tensors)
    packed = sum(tensor.elements * 32 // bits for tensor in tensors if tensor.name.endswith(".qweight"))
    helpers = (".qweight", ".qzeros", ".scales", ".g_idx")
    return packed + sum(tensor.elements for tensor in tensors if not tensor.name.endswith(helpers))


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


def _has_chat_template(root: Path) -> bool:
    if (root / "chat_template.jinja").exists() or (root / "chat_template.json").exists():
        return True
    return bool(_json(root / "tokenizer_config.json").get("chat_template"))


def _more(config: dict[str, Any], text: dict[str, Any], parts: int) -> dict[str, Any]:
    found = {
        "model_type": config.get("model_type"),
        "dtype": config.get("torch_dtype") or config.get("dtype") or text.get("torch_dtype"),
        "vocabulary": _first(text, "vocab_size"),
        "sliding_window": _first(text, "sliding_window"),
        "feed_forward": _first(text, "intermediate_size"),
        "experts": _first(text, "num_local_experts", "n_routed_experts", "num_experts"),
        "kv_lora_rank": _first(text, "kv_lora_rank"),
        "parts": parts,
    }
    return {key: value[:200] if isinstance(value, str) else value for key, value in found.items() if value}
