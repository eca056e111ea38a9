"""Reader of GGUF headers (versions 2 and 3), hard against damaged and hostile files.

Every read is checked against the file's end before anything is allocated; counts are bounded; tensor data is never
touched. Source: the GGUF specification of ggml-org.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from models_registry.errors import DamagedModel
from models_registry.inspect.gguf_types import ARRAY, SCALARS, STRING, TENSOR_TYPES

MAGIC = b"GGUF"
_MAX_VALUES = 100_000
_MAX_TENSORS = 100_000  # the largest known have some 3,000
_MAX_STRINGS = 2_000_000  # strings of all arrays together: vocabularies have some 100,000
_MAX_LISTS = 10_000  # in lists
_MAX_NAME_BYTES = 16 << 20  # of all names together
_MAX_KEPT_BYTES = 8 << 20  # of all values together; beyond it they are only checked
TEMPLATE = "tokenizer.chat_template"
_MAX_TEMPLATE_BYTES = 256 << 10
_MAX_KEY_BYTES = 65_535
_MAX_KEPT_STRING_BYTES = 4_096
_MAX_KEPT_ITEMS = 4_096
_CUT = "ends within its header: it was cut, or altered"
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 4
_MAX_ELEMENTS = 1 << 50


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
        self._lists = 0
        self._name_bytes = 0
        self._kept_bytes = 0

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
        values: dict[str, Any] = {}
        for _ in range(value_count):
            key, value = self._key_value()
            if key in values:
                raise self._damaged(f"gives {key[:80]!r} twice")
            values[key] = value
        infos = [self._tensor_info() for _ in range(tensor_count)]
        return self._with_data(version, values, infos)

    def _with_data(self, version: int, values: dict[str, Any], infos: list[tuple[str, int, int, int]]) -> Header:
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"has an alignment of {alignment!r}, which is no power of two")
        data_start = -(-self._at // alignment) * alignment
        data_bytes = max(0, self._size - data_start)
        tensors, spans = [], []
        for name, elements, type_id, offset in infos:
            size_bytes = self._tensor_bytes(name, elements, type_id)
            if offset % alignment or offset + size_bytes > data_bytes:
                raise self._damaged(f"ends before its tensor {name[:80]!r} does: it was cut, or altered")
            tensors.append(Tensor(name, elements, type_id, size_bytes))
            spans.append((offset, offset + size_bytes, name))
        spans.sort()
        for (_, end, name), (start, _, other) in pairwise(spans):
            if start < end:
                raise self._damaged(f"has tensors that overlap: {name[:80]!r} and {other[:80]!r}")
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise self._damaged("names a tensor twice")
        return Header(version, values, tuple(tensors), data_bytes)

    def _tensor_bytes(self, name: str, elements: int, type_id: int) -> int:
        if type_id not in TENSOR_TYPES:
            return 0
        _, block_elements, block_bytes = TENSOR_TYPES[type_id]
        if elements % block_elements:
            raise self._damaged(f"has a tensor {name[:80]!r} of {elements} values, which its type cannot hold")
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
            raise self._damaged(f"has an impossible tensor {name[:80]!r}")
        return name, elements, type_id, offset

    def _key_value(self) -> tuple[str, Any]:
        key = self._text(_MAX_KEY_BYTES)
        kind = self._number("I")
        if key == TEMPLATE and kind == STRING:
            return key, self._short_text(_MAX_TEMPLATE_BYTES)
        return key, self._value(kind, depth=0)

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
            self._skip_strings(count)
        else:
            self._lists += count
            if self._lists > _MAX_LISTS:
                raise self._damaged(f"claims a list of {count} lists")
            for _ in range(count):
                self._value(item_kind, depth + 1)
        return Skipped(count)

    def _numbers(self, form: str, count: int) -> Any:
        size_bytes = count * struct.calcsize(f"<{form}")
        if size_bytes > self._left:
            raise self._damaged(f"claims a list of {count} numbers, more than it can hold")
        if count > _MAX_KEPT_ITEMS or not self._may_keep(32 * count):
            self._skip(size_bytes)
            return Skipped(count)
        return list(struct.unpack(f"<{count}{form}", self._take(size_bytes)))

    def _skip_strings(self, count: int) -> None:
        """Of a vocabulary: this is where the time goes."""
        content, at, size = self._content, self._at, self._size
        length_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise self._damaged(_CUT)
            at += 8 + length_of(content, at)[0]
        if at > size:
            raise self._damaged(_CUT)
        self._at = at

    def _may_keep(self, size_bytes: int) -> bool:
        self._kept_bytes += size_bytes
        return self._kept_bytes <= _MAX_KEPT_BYTES

    def _short_text(self, most_bytes: int = _MAX_KEPT_STRING_BYTES) -> Any:
        """A string; a long one only by its length."""
        size_bytes = self._number("Q")
        if size_bytes > most_bytes or not self._may_keep(size_bytes + 64):
            self._skip(size_bytes)
            return Skipped(size_bytes)
        return self._take(size_bytes).decode("utf-8", errors="replace")

    def _text(self, most_bytes: int) -> str:
        size_bytes = self._number("Q")
        self._name_bytes += size_bytes
        if size_bytes > most_bytes or self._name_bytes > _MAX_NAME_BYTES:
            raise self._damaged(f"has a name of {size_bytes} bytes, or too many of them")
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
            raise self._damaged(_CUT)
        self._at += size_bytes

    def _damaged(self, what: str) -> DamagedModel:
        return DamagedModel(f"{self._name} {what}.")


@dataclass(frozen=True)
class Skipped:
    """A value that was checked, but is too long to keep."""

    count: int
