"""Reader of safetensors headers, hard against damaged and hostile files. Tensor data is never touched.

Source: the safetensors format description of Hugging Face (8 bytes of little-endian length, JSON, data).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

from models_registry.errors import DamagedModel

_MAX_HEADER_BYTES = 25 << 20  # the format allows 100 MB; the largest known are near 1 MB a shard
_MAX_TENSORS = 200_000
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
    if content.count(b'"data_offsets"') > _MAX_TENSORS:
        raise DamagedModel(f"{path.name} claims more than {_MAX_TENSORS} tensors.")
    try:
        entries = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        if len(entries) > _MAX_TENSORS:
            raise DamagedModel(f"{path.name} claims {len(entries)} tensors.")
        decoded = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in entries.items()}
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise DamagedModel(f"{path.name} has a header that cannot be read: {str(error)[:200]}.") from error
    data_bytes = size_bytes - 8 - length
    found = tuple(_tensor(path.name, name, entry, data_bytes) for name, entry in decoded.items())
    _check_layout(path.name, decoded, data_bytes)
    return found


def _check_layout(file_name: str, entries: dict[str, _Entry], data_bytes: int) -> None:
    """The format wants the tensors one after the other, without holes, to the very end of the file."""
    end = 0
    for start, stop, name in sorted((*entry.data_offsets, name) for name, entry in entries.items()):
        if start != end:
            what = "overlaps another" if start < end else "leaves a hole before it"
            raise DamagedModel(f"{file_name} has a tensor {name[:80]!r} that {what}.")
        end = stop
    if end != data_bytes:
        raise DamagedModel(f"{file_name} has {data_bytes - end} bytes that belong to no tensor.")


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
