"""Reads the headers of a tar that may have been made by anybody, and by hand. Nothing is written, no data is read.

Of the formats (POSIX.1-2001 pax interchange, ustar, GNU) only what an archive of ours needs is understood: regular
files and folders, with long names and sizes. Links, devices, sparse files and all else are refused. Python's
`tarfile` is not used: it follows what a header says into memory and, by `extractall`, into the file system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from models_registry.errors import BadArchive
from models_registry.scan import MOST_FILES
from wire.errors import BadMessage
from wire.manifest import check_path

BLOCK = 512
_MOST_HEADERS = 3 * MOST_FILES
_MOST_EXTENDED_BYTES = 64 << 10
_EMPTY = bytes(BLOCK)
_REGULAR, _FOLDER, _PAX, _PAX_FOR_ALL, _GNU_LONG_NAME = (b"0", b"\0", b"7"), b"5", b"x", b"g", b"L"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"K": "a link with a long name",
    b"S": "a sparse file",
    b"D": "a folder of a GNU dump",
    b"M": "a part of another volume",
    b"V": "a volume's label",
}


@dataclass(frozen=True)
class Member:
    """A regular file: where its bytes are in the tar."""

    offset: int
    size: int


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar."""
    return len(head) >= BLOCK and head[257:262] == b"ustar"


def index(file: BinaryIO, size: int) -> dict[str, Member]:
    """Every regular file of a tar of `size` bytes, by its name.

    Raises BadArchive: truncated, damaged, too many members, a name that is unsafe or there twice, and everything that
    is no regular file or folder.
    """
    found: dict[str, Member] = {}
    folders: set[str] = set()
    extended: dict[str, str] = {}
    at = 0
    for _ in range(_MOST_HEADERS):
        block = _read(file, at, BLOCK)
        if block == _EMPTY:
            _check_tree(found, folders)
            return found
        header = _Header(block)
        data = at + BLOCK
        length = _number(extended["size"].encode(), 10) if "size" in extended else header.size
        if data + length > size:
            raise BadArchive(f"The tar ends before {header.name[:200]!r} does: it is truncated, or a size in it lies.")
        at = data + -(-length // BLOCK) * BLOCK
        if header.kind in (_PAX, _PAX_FOR_ALL, _GNU_LONG_NAME):
            if length > _MOST_EXTENDED_BYTES:
                raise BadArchive("A header of the tar is larger than any name could make it.")
            more = _read(file, data, length)
            extended |= {"path": _text(more.rstrip(b"\0"))} if header.kind == _GNU_LONG_NAME else _records(more)
            if header.kind == _PAX_FOR_ALL:
                extended = {}
            continue
        name, extended = extended.get("path", header.name), {}
        _note(header, name, Member(data, length), found, folders)
    raise BadArchive(f"The tar has more than {_MOST_HEADERS} members; {MOST_FILES} files are the most that are taken.")


def _note(header: _Header, name: str, member: Member, found: dict[str, Member], folders: set[str]) -> None:
    if header.kind == _FOLDER:
        if path := name.removeprefix("./").rstrip("/"):
            folders.add(_safe(path))
        return
    if header.kind not in _REGULAR:
        what = _REFUSED.get(header.kind, "of an unknown kind")
        raise BadArchive(f"{name[:200]!r} in the tar is {what}: only regular files are taken.")
    path = _safe(name.removeprefix("./"))
    if path in found:
        raise BadArchive(f"{path!r} is twice in the tar.")
    if len(found) > MOST_FILES:
        raise BadArchive(f"The tar has more than {MOST_FILES} files.")
    found[path] = member


class _Header:
    """One block of 512 bytes. Raises BadArchive when its checksum is wrong."""

    def __init__(self, block: bytes) -> None:
        told = _number(block[148:156], 8)
        if sum(block[:148]) + sum(block[156:]) + 8 * 32 != told or block[257:262] != b"ustar":
            raise BadArchive("The tar is damaged: a header's checksum is wrong.")
        self.kind = block[156:157]
        self.size = _number(block[124:136], 8)
        name, prefix = _text(block[:100]), _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
        self.name = f"{prefix}/{name}" if prefix else name


def _number(field: bytes, base: int) -> int:
    """In digits, or, as GNU writes large ones, as the bytes of the number itself."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits.isdigit() and digits:
        raise BadArchive("The tar is damaged: a header has no number where one must be.")
    try:
        return int(digits or b"0", base)
    except ValueError as error:
        raise BadArchive("The tar is damaged: a header has no number where one must be.") from error


def _records(data: bytes) -> dict[str, str]:
    """Of a pax header: `LENGTH KEY=VALUE\\n`, one after the other."""
    found: dict[str, str] = {}
    while data:
        length_text, space, _ = data.partition(b" ")
        if not space or not length_text.isdigit() or len(length_text) > 6:
            raise BadArchive("The tar is damaged: an extended header cannot be read.")
        length = int(length_text)
        record, data = data[len(length_text) + 1 : length], data[length:]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise BadArchive("The tar is damaged: an extended header cannot be read.")
        if key.startswith(b"GNU.sparse"):
            raise BadArchive("The tar has a sparse file in it: only regular files are taken.")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value[:-1])
    return found


def _text(field: bytes) -> str:
    try:
        return field.partition(b"\0")[0].decode()
    except UnicodeDecodeError as error:
        raise BadArchive("A name in the tar is no UTF-8.") from error


def _safe(path: str) -> str:
    try:
        return check_path(path)
    except BadMessage as error:
        raise BadArchive(f"The name {path[:200]!r} in the tar is not safe.") from error


def _check_tree(found: Mapping[str, Member], folders: set[str]) -> None:
    """No file may be where a folder is needed."""
    needed = set(folders)
    for path in found:
        parts = path.split("/")
        needed.update("/".join(parts[:count]) for count in range(1, len(parts)))
    if both := needed & set(found):
        raise BadArchive(f"{min(both)!r} is a file and a folder in the tar.")


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    data = file.read(count)
    if len(data) < count:
        raise BadArchive("The tar ends too soon: it is truncated.")
    return data
