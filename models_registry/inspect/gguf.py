"""Reader of GGUF headers (versions 2 and 3), hard against damaged and hostile files.

Every read is checked against the file's end before anything is allocated; counts are bounded; tensor data is never
touched. Source: the GGUF specification of ggml-org.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models_registry.errors import BadSource, DamagedModel
from models_registry.inspect.facts import ModelFacts
from models_registry.inspect.gguf_types import ARRAY, FILE_TYPES, SCALARS, STRING, TENSOR_TYPES
from models_registry.models import Format

MAGIC = b"GGUF"
_MAX_VALUES = 100_000
_MAX_TENSORS = 1_000_000
_MAX_STRINGS = 4_000_000  # strings of all arrays together: vocabularies have some 100,000
_MAX_KEY_BYTES = 65_535
_MAX_KEPT_STRING_BYTES = 4_096
_MAX_KEPT_ITEMS = 4_096
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 4
_MAX_ELEMENTS = 1 << 50
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class Tensor:
    name: str
    elements: int
    type_id: int
    size_bytes: int  # 0: of a type not known here

    @property
    def type_name(self) -> str:
        return TENSOR_TYPES[self.type_id][0] if self.type_id in TENSOR_TYPES else f"type {self.type_id}"


@dataclass(frozen=True)
class Header:
    """What one GGUF file says about itself. Long strings and arrays are counted, not kept."""

    version: int
    values: dict[str, Any]
    tensors: tuple[Tensor, ...]
    data_bytes: int


def read_header(path: Path) -> Header:
    """Raises DamagedModel when the header is cut, contradicts itself or the file's size, or is no GGUF."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(path.name, content).header()
    except ValueError as error:  # mmap of an empty file
        raise DamagedModel(f"{path.name} is empty.") from error


class _Reader:
    def __init__(self, name: str, content: mmap.mmap) -> None:
        self._name = name
        self._content = content
        self._size = len(content)
        self._at = 0
        self._strings = 0

    def header(self) -> Header:
        if self._take(4) != MAGIC:
            raise self._damaged("does not start like a GGUF file")
        version = self._number("I")
        if version not in (2, 3):
            hint = "big-endian, or " if version in (2 << 24, 3 << 24) else ""
            raise self._damaged(f"has GGUF version {version}, which is {hint}not one of 2 and 3")
        tensor_count, value_count = self._number("Q"), self._number("Q")
        # The smallest tensor info has 8 + 1 + 4 + 8 + 4 + 8 bytes, the smallest value 8 + 1 + 4 + 1.
        if tensor_count > min(_MAX_TENSORS, self._left // 24) or value_count > min(_MAX_VALUES, self._left // 13):
            raise self._damaged(f"claims {tensor_count} tensors and {value_count} values, more than it can hold")
        values = dict(self._key_value() for _ in range(value_count))
        infos = [self._tensor_info() for _ in range(tensor_count)]
        return self._with_data(version, values, infos)

    def _with_data(self, version: int, values: dict[str, Any], infos: list[tuple[str, int, int, int]]) -> Header:
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"has an alignment of {alignment!r}, which is no power of two")
        data_start = -(-self._at // alignment) * alignment
        data_bytes = max(0, self._size - data_start)
        tensors = []
        for name, elements, type_id, offset in infos:
            size_bytes = self._tensor_bytes(name, elements, type_id)
            if offset % alignment or offset + size_bytes > data_bytes:
                raise self._damaged(f"ends before its tensor {name!r} does: it was cut, or altered")
            tensors.append(Tensor(name, elements, type_id, size_bytes))
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise self._damaged("names a tensor twice")
        return Header(version, values, tuple(tensors), data_bytes)

    def _tensor_bytes(self, name: str, elements: int, type_id: int) -> int:
        if type_id not in TENSOR_TYPES:
            return 0
        _, block_elements, block_bytes = TENSOR_TYPES[type_id]
        if elements % block_elements:
            raise self._damaged(f"has a tensor {name!r} of {elements} values, which its type cannot hold")
        return elements // block_elements * block_bytes

    def _tensor_info(self) -> tuple[str, int, int, int]:
        name = self._text(_MAX_KEY_BYTES)
        dimensions = self._number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise self._damaged(f"has a tensor of {dimensions} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= self._number("Q")
        type_id, offset = self._number("I"), self._number("Q")
        if elements > _MAX_ELEMENTS or type_id > 1000:
            raise self._damaged(f"has an impossible tensor {name!r}")
        return name, elements, type_id, offset

    def _key_value(self) -> tuple[str, Any]:
        key = self._text(_MAX_KEY_BYTES)
        return key, self._value(self._number("I"), depth=0)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == STRING:
            return self._short_text()
        if kind != ARRAY or depth >= _MAX_DEPTH:
            raise self._damaged(f"has a value of unknown type {kind}")
        item_kind, count = self._number("I"), self._number("Q")
        if item_kind in SCALARS:
            return self._numbers(SCALARS[item_kind], count)
        self._strings += count
        if count > self._left // 8 or self._strings > _MAX_STRINGS:
            raise self._damaged(f"claims a list of {count} entries, more than it can hold")
        if item_kind == STRING:
            for _ in range(count):
                self._skip(self._number("Q"))
        else:
            for _ in range(count):
                self._value(item_kind, depth + 1)
        return _Skipped(count)

    def _numbers(self, form: str, count: int) -> Any:
        size_bytes = count * struct.calcsize(f"<{form}")
        if size_bytes > self._left:
            raise self._damaged(f"claims a list of {count} numbers, more than it can hold")
        if count > _MAX_KEPT_ITEMS:
            self._skip(size_bytes)
            return _Skipped(count)
        return list(struct.unpack(f"<{count}{form}", self._take(size_bytes)))

    def _short_text(self) -> Any:
        """A string; a long one (a chat template) only by its length."""
        size_bytes = self._number("Q")
        if size_bytes > _MAX_KEPT_STRING_BYTES:
            self._skip(size_bytes)
            return _Skipped(size_bytes)
        return self._take(size_bytes).decode("utf-8", errors="replace")

    def _text(self, most_bytes: int) -> str:
        size_bytes = self._number("Q")
        if size_bytes > most_bytes:
            raise self._damaged(f"has a name of {size_bytes} bytes")
        return self._take(size_bytes).decode("utf-8", errors="replace")

    def _number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]

    @property
    def _left(self) -> int:
        return self._size - self._at

    def _take(self, size_bytes: int) -> bytes:
        start = self._at
        self._skip(size_bytes)
        return self._content[start : self._at]

    def _skip(self, size_bytes: int) -> None:
        if size_bytes > self._left:
            raise self._damaged("ends within its header: it was cut, or altered")
        self._at += size_bytes

    def _damaged(self, what: str) -> DamagedModel:
        return DamagedModel(f"{self._name} {what}.")


@dataclass(frozen=True)
class _Skipped:
    """A value that was checked, but is too long to keep."""

    count: int


# ------------------------------------------------------------------------------------------------ facts


def inspect_gguf(root: Path, paths: Sequence[str]) -> ModelFacts:
    """Facts of the one model that the GGUF files `paths` below `root` make up.

    Raises DamagedModel (also when a part of a split is missing), BadSource when they are several models.
    """
    headers = {path: read_header(root / path) for path in sorted(paths)}
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
    return facts


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

    heads, hidden_size = own("attention.head_count"), own("embedding_length")
    head_dim = own("attention.key_length") or (hidden_size // heads if heads and hidden_size else None)
    return ModelFacts(
        format=Format.GGUF.value,
        entry=entry,
        architecture=architecture,
        parameter_count=sum(tensor.elements for tensor in tensors),
        context_tokens=own("context_length"),
        layers=own("block_count"),
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=own("attention.head_count_kv") or heads,
        head_dim=head_dim,
        quantization=_quantization(values, tensors),
        tensor_bytes=sum(tensor.size_bytes for tensor in tensors) or sum(header.data_bytes for header in headers),
        chat_template="tokenizer.chat_template" in values,
        more=_more(values, architecture, headers),
    )


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
        "vocabulary": vocabulary.count if isinstance(vocabulary, _Skipped) else None,
        "value_dim": _int_of(values.get(f"{architecture}.attention.value_length")),
        "kv_lora_rank": _int_of(values.get(f"{architecture}.attention.kv_lora_rank")),
        "sliding_window": _int_of(values.get(f"{architecture}.attention.sliding_window")),
        "feed_forward": _int_of(values.get(f"{architecture}.feed_forward_length")),
        "experts": _int_of(values.get(f"{architecture}.expert_count")),
        "pooling": _int_of(values.get(f"{architecture}.pooling_type")),
        "gguf_version": headers[0].version,
        "parts": len(headers),
    }
    return {key: value for key, value in found.items() if value not in (None, "")}


def _text_of(value: Any) -> str:
    return value[:200] if isinstance(value, str) else ""


def _int_of(value: Any) -> int | None:
    """A count; of a list with one a layer, the largest."""
    if isinstance(value, list):
        numbers = [item for item in value if isinstance(item, int)]
        value = max(numbers, default=None)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None
