"""Files of a model that can run code when they are loaded, found by what is in them, whatever their names say.

Pickles are looked for in plain files, in zip archives (as torch, numpy and Keras write them), behind a compression,
and behind the header of a numpy file. Each file is looked at within a budget; what cannot be looked through is said to
be so, and counts as dangerous.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import msgspec

from models_registry.inspect.pickles import UNREADABLE, Broken, Budget, Pickle, Stream, starts_like_pickle, walk
from models_registry.inspect.signatures import Signature

_PICKLE_NAME = re.compile(r".*\.(?:bin|pt|pth|ckpt|pkl|pickle|joblib|dill|model|dat)", re.IGNORECASE)
"""Names under which a pickle without a header (protocols 0 and 1) is looked for."""
_SAFE = (".gguf", ".safetensors")
"""Engines read these by their names, as what they say; whether they are sound, the readers of headers have seen."""
_IDENTIFIER = re.compile(r"[A-Za-z_][\w.]*")
_MAX_NAMES = 40
_MAX_IMPORTS = 1000
_MAX_PICKLES = 10_000
_MAX_WITHOUT_HEADER = 8  # torch reads five, and any of them may be of an old protocol
_MAX_MEMBERS = 20_000
_MAX_DIRECTORY_BYTES = 16 << 20
_END_OF_ZIP = b"PK\x05\x06"
_MAX_NPY_HEADER_BYTES = 65_536
_ARCHIVES = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR", b"\x28\xb5\x2f\xfd": "zstd"}
_HEAD_BYTES = 512


class Danger(StrEnum):
    """What a file can do when it is loaded."""

    PICKLE = "pickle"  # it runs what it names
    ARCHIVE = "archive"  # it may hold anything: it cannot be looked through
    CODE = "code"  # Python that an engine runs only when it is told to trust the model


class Finding(msgspec.Struct, frozen=True):
    """One file. `imports`: `module.name`, `dangerous` those that are not known to be harmless."""

    path: str
    kind: Danger
    imports: tuple[str, ...] = ()
    dangerous: tuple[str, ...] = ()
    note: str = ""
    """Why it was not looked through to its end; empty: it was."""


class Scan(msgspec.Struct, frozen=True):
    """All findings of a version, and the signatures and checksum lists among its files."""

    files: tuple[Finding, ...] = ()
    signatures: tuple[Signature, ...] = ()

    @property
    def flagged(self) -> bool:
        """Whether a file can run code by being loaded; Python beside it needs somebody who asks for it."""
        return any(one.kind is not Danger.CODE for one in self.files)


def scan_files(root: Path, paths: Iterable[str]) -> Scan:
    """Findings of the files `paths` below `root`."""
    found = (scan_file(root / path, path) for path in sorted(paths))
    return Scan(tuple(one for one in found if one is not None))


def scan_file(file: Path, path: str) -> Finding | None:
    """None: it holds nothing that runs. `path` is the name to tell; damaged files are findings, not errors."""
    if path.endswith(".py"):
        return Finding(path, Danger.CODE)
    if path.lower().endswith(_SAFE):
        return None
    with file.open("rb") as content:
        size = file.stat().st_size
        return _Look(path, Budget()).content(content, path, size)


class _Look:
    """One look at one file, and at what it is packed of."""

    def __init__(self, path: str, budget: Budget) -> None:
        self._path = path
        self._budget = budget

    def content(self, content: IO[bytes], name: str, size: int) -> Finding | None:
        head = content.read(_HEAD_BYTES)
        if packed := self._packed(head):
            return packed
        if head.startswith((b"PK\x03\x04", _END_OF_ZIP)) or _ends_like_zip(content, size):
            return self._zip(content, size)
        content.seek(0)
        return self._stream(content, name, depth=0)

    def _packed(self, head: bytes) -> Finding | None:
        """Archives that are not opened here."""
        kind = _archive(head)
        return self._closed(f"It is a {kind} archive, which is not opened.") if kind else None

    def _zip(self, content: IO[bytes], size: int) -> Finding | None:
        if not _directory_is_small(content, size):
            return self._closed("It is a zip archive with a directory that is damaged, or too large to look at.")
        try:
            with zipfile.ZipFile(content) as archive:
                members = archive.infolist()
                if len(members) > _MAX_MEMBERS:
                    return self._closed(f"It is a zip archive of {len(members)} files, too many to look at.")
                found = [one for member in members if (one := self._member(archive, member)) is not None]
        except UNREADABLE as error:
            return self._closed(f"It is a zip archive that cannot be read: {_short(error)}.")
        return self._joined(found)

    def _member(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Finding | None:
        if member.is_dir():
            return None
        try:
            with archive.open(member) as content:
                return self._stream(content, member.filename, depth=1)
        except UNREADABLE as error:
            return self._closed(f"{_short(member.filename)} in it cannot be read: {_short(error)}.")

    def _stream(self, content: Any, name: str, depth: int) -> Finding | None:
        """What a plain file, a member of an archive, or the inside of a compression holds."""
        stream = Stream(content, self._budget)
        try:
            head = stream.peek(_HEAD_BYTES)
        except UNREADABLE as error:
            return self._closed(f"It cannot be looked through: {_short(error) or 'it is too large'}.")
        if depth and (head.startswith(b"PK\x03\x04") or _archive(head)):
            return self._closed(f"{_short(name)} in it is an archive in an archive.")
        if opener := _opener(head):
            if depth > 1:
                return self._closed("It is compressed several times over.")
            return self._stream(_reopened(opener, stream), name, depth + 1)
        if head.startswith(b"\x93NUMPY"):
            return self._pickles(stream) if _holds_objects(stream) else None
        if starts_like_pickle(head):
            return self._pickles(stream)
        if _PICKLE_NAME.fullmatch(name):  # of an old protocol, without a header: what imports something is one
            found = self._pickles(stream)
            return found if found.imports else None
        return None

    def _pickles(self, stream: Stream) -> Finding:
        """Of torch files of old there are several, one after the other, and then the numbers."""
        imports: dict[tuple[str, str], None] = {}
        whole = True
        for number in range(_MAX_PICKLES):
            try:
                head = stream.peek(2)
            except UNREADABLE:
                whole = False
                break
            has_header = starts_like_pickle(head)
            if not head or (number >= _MAX_WITHOUT_HEADER and not has_header):
                break
            found = walk(stream)
            if has_header or found.whole:
                imports |= dict.fromkeys(found.imports)
                whole = found.whole
            else:  # the numbers begin here, or something that pretends to be numbers
                imports |= dict.fromkeys(one for one in found.imports if all(map(_IDENTIFIER.fullmatch, one)))
                break
            if not whole or len(imports) > _MAX_IMPORTS:
                whole = False
                break
        else:
            whole = False
        return self._told(Pickle(tuple(imports), whole))

    def _told(self, found: Pickle) -> Finding:
        names = tuple(dict.fromkeys(_name(*one) for one in found.imports))
        dangerous = tuple(dict.fromkeys(_name(*one) for one in found.dangerous))
        note = "" if found.whole else "It could not be followed to its end: it is damaged, or too long."
        return Finding(self._path, Danger.PICKLE, names[:_MAX_NAMES], dangerous[:_MAX_NAMES], note)

    def _joined(self, found: list[Finding]) -> Finding | None:
        if not found:
            return None
        kind = Danger.PICKLE if any(one.kind is Danger.PICKLE for one in found) else Danger.ARCHIVE
        return Finding(
            self._path,
            kind,
            tuple(dict.fromkeys(name for one in found for name in one.imports))[:_MAX_NAMES],
            tuple(dict.fromkeys(name for one in found for name in one.dangerous))[:_MAX_NAMES],
            next((one.note for one in found if one.note), ""),
        )

    def _closed(self, note: str) -> Finding:
        return Finding(self._path, Danger.ARCHIVE, note=note)


def _archive(head: bytes) -> str:
    """Kind of an archive that is not opened here; empty: it is none."""
    if head[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), "")


def _ends_like_zip(content: IO[bytes], size: int) -> bool:
    """zipfile and torch find an archive by its end, whatever is before it."""
    content.seek(max(0, size - 22))
    return content.read(4) == _END_OF_ZIP


def _directory_is_small(content: IO[bytes], size: int) -> bool:
    """Whether the list of members, which is read as a whole, is of a size to be read. Source: APPNOTE.TXT, 4.3.16."""
    content.seek(max(0, size - 65_557))
    tail = content.read(65_557)
    at = tail.rfind(_END_OF_ZIP)
    if at < 0 or len(tail) - at < 22:
        return False
    directory_bytes = int.from_bytes(tail[at + 12 : at + 16], "little")
    if directory_bytes == 0xFFFFFFFF or int.from_bytes(tail[at + 10 : at + 12], "little") == 0xFFFF:
        before = tail.rfind(b"PK\x06\x06", 0, at)
        directory_bytes = int.from_bytes(tail[before + 40 : before + 48], "little") if before >= 0 else 1 << 62
    return directory_bytes <= _MAX_DIRECTORY_BYTES


def _opener(head: bytes) -> Any:
    if head.startswith(b"\x1f\x8b\x08"):
        return gzip.GzipFile
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return bz2.BZ2File
    if head.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile
    return _ZlibFile if _is_zlib(head) else None


def _is_zlib(head: bytes) -> bool:
    """Two bytes say it, which a text may begin with, too."""
    try:
        return head[:2] in (b"x\x01", b"x\x5e", b"x\x9c", b"x\xda") and bool(zlib.decompressobj().decompress(head, 64))
    except zlib.error:
        return False


def _reopened(opener: Any, stream: Stream) -> Any:
    return opener(fileobj=_Plain(stream)) if opener is gzip.GzipFile else opener(_Plain(stream))


class _Plain:
    """A stream as a file that decompressors read from."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def read(self, size: int = 8192) -> bytes:
        try:
            return self._stream.take(len(self._stream.peek(min(size, 8192) if size > 0 else 8192)))
        except Broken as error:
            raise EOFError("it is too large") from error

    def seekable(self) -> bool:
        return False

    def readable(self) -> bool:
        return True

    def seek(self, *_: Any) -> int:
        raise OSError("not seekable")


class _ZlibFile:
    """What zlib wrote without a frame around it, as joblib does."""

    def __init__(self, content: _Plain) -> None:
        self._content = content
        self._open = zlib.decompressobj()

    def read(self, size: int = 65_536) -> bytes:
        while True:
            packed = self._open.unconsumed_tail or self._content.read(8192)
            found = self._open.decompress(packed, size)
            if found or not packed or self._open.eof:
                return found


def _holds_objects(stream: Stream) -> bool:
    """Whether a numpy file holds Python objects, which are pickled; leaves the stream behind the header."""
    try:
        major = stream.take(8)[6]
        size = int.from_bytes(stream.take(2 if major == 1 else 4), "little")
        if size > _MAX_NPY_HEADER_BYTES:
            return True
        return re.search(rb"'descr'\s*:[^}]*?['|]\|?O", stream.take(size)) is not None
    except Broken:
        return False


def _name(module: str, name: str) -> str:
    return _short(f"{module}.{name}")


def _short(text: object) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(text))[:120]
