"""What a pickle would import when it is loaded, read from its opcodes. Nothing is ever unpickled.

A pickle is a program: `GLOBAL` and its kin import any name of any module, `REDUCE` calls it. The opcodes are walked on
a stack of the texts they push, so that names built from several opcodes are seen too; whatever cannot be followed
counts as dangerous. Sources: `pickletools` of CPython, PEP 307, PEP 574.
"""

from __future__ import annotations

import lzma
import pickletools
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Protocol

UNKNOWN = "?"
_MAX_OPS = 1_000_000
_MAX_LINE_BYTES = 65_536
_MAX_TEXT_BYTES = 512  # names of modules are shorter
_MAX_MEMO_BYTES = 16 << 20
_MAX_IMPORTS = 200
_MAX_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 16
_OPCODES = {ord(one.code): one for one in pickletools.opcodes}
_TEXTS = frozenset(
    {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}

_HARMLESS = {
    "collections": {"OrderedDict", "defaultdict"},
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "torch": {
        *("Size", "Tensor", "device", "dtype", "float16", "float32", "float64", "bfloat16", "bool", "uint8"),
        *("int8", "int16", "int32", "int64", "complex64", "float8_e4m3fn", "float8_e5m2"),
    },
    "torch.storage": {"TypedStorage", "UntypedStorage"},
    "torch.nn.parameter": {"Parameter", "Buffer"},
    "torch.serialization": {"_get_layout"},
    "numpy": {"ndarray", "dtype"},
}
"""What checkpoints name, and what can do nothing but hold numbers."""
for _module in ("builtins", "__builtin__"):
    _HARMLESS[_module] = {"set", "frozenset", "list", "dict", "tuple", "bytearray", "complex", "int", "float", "str"}
for _module in ("numpy.core", "numpy._core"):
    _HARMLESS[f"{_module}.multiarray"] = {"_reconstruct", "scalar"}
    _HARMLESS[f"{_module}.numeric"] = {"_frombuffer"}
_REBUILDS = re.compile(r"_rebuild_(?:parameter|tensor|sparse|qtensor|device_tensor|meta_tensor|nested)[a-z0-9_]*")


class Reader(Protocol):
    """Bytes one after the other, such as a file."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass
class Budget:
    """How much of a file may still be looked through, over all pickles in it."""

    ops: int = _MAX_OPS
    bytes: int = _MAX_BYTES


@dataclass(frozen=True)
class Pickle:
    """`imports`: module and name, in the order in which they come. `whole`: it was followed to its end."""

    imports: tuple[tuple[str, str], ...]
    whole: bool

    @property
    def dangerous(self) -> tuple[tuple[str, str], ...]:
        """Imports that are not known to be harmless."""
        return tuple(one for one in self.imports if not is_harmless(*one))


class Broken(Exception):
    """It is no pickle from here on, or goes on for longer than is looked at."""


UNREADABLE = (
    *(Broken, OSError, EOFError, ValueError, RuntimeError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What the standard library raises for files that are cut, damaged, locked by a password, or of an unknown kind."""


def is_harmless(module: str, name: str) -> bool:
    """Whether an import is one of those that checkpoints of numbers need. A name with dots in it never is."""
    if module == "torch._utils":
        return _REBUILDS.fullmatch(name) is not None
    return name in _HARMLESS.get(module, ()) or (module == "torch" and name.endswith("Storage") and name.isalpha())


def starts_like_pickle(head: bytes) -> bool:
    """Protocol 2 and later say so in their first two bytes."""
    return len(head) >= 2 and head[0] == 0x80 and 1 < head[1] <= 5


def walk(stream: Stream) -> Pickle:
    """The pickle that begins here, up to its STOP. Never raises for what is in it: `whole` is False then."""
    walker = _Walker(stream)
    try:
        walker.run()
    except UNREADABLE:
        return Pickle(tuple(walker.imports), whole=False)
    return Pickle(tuple(walker.imports), whole=True)


class Stream:
    """Bytes one after the other, of which little is held, and no more is read than the budget allows."""

    def __init__(self, reader: Reader, budget: Budget) -> None:
        self.budget = budget
        self._reader = reader
        self._held = b""
        self._at = 0
        self._chunk_bytes = 512  # grows: most files are no pickles, which their first bytes tell

    def peek(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        self._hold(size)
        return self._held[self._at : self._at + size]

    def take(self, size: int) -> bytes:
        found = self.peek(size)
        if len(found) != size:
            raise Broken
        self._at += size
        return found

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.take(min(size, _CHUNK_BYTES)))

    def line(self) -> bytes:
        """Up to the next end of a line, without it."""
        found = self.peek(_MAX_LINE_BYTES)
        end = found.find(b"\n")
        if end < 0:
            raise Broken
        self._at += end + 1
        return found[:end]

    def _hold(self, size: int) -> None:
        if len(self._held) - self._at >= size:
            return
        self._held, self._at = self._held[self._at :], 0
        while len(self._held) < size:
            if self.budget.bytes <= 0:
                raise Broken
            more = self._reader.read(self._chunk_bytes)
            if not more:
                return
            self._chunk_bytes = min(4 * self._chunk_bytes, _CHUNK_BYTES)
            self.budget.bytes -= len(more)
            self._held += more


class _Walker:
    def __init__(self, stream: Stream) -> None:
        self.imports: dict[tuple[str, str], None] = {}
        self._stream = stream
        self._stack: list[object] = []
        self._memo: dict[int, str] = {}
        self._memo_bytes = 0
        self._memoized = 0

    def run(self) -> None:
        while True:
            self._stream.budget.ops -= 1
            if self._stream.budget.ops < 0:
                raise Broken
            opcode = _OPCODES.get(self._stream.take(1)[0])
            if opcode is None:
                raise Broken
            self._step(opcode, self._argument(opcode))
            if opcode.name == "STOP":
                return

    def _argument(self, opcode: pickletools.OpcodeInfo) -> bytes:
        """Its bytes; of a long one nothing, it is skipped."""
        if opcode.arg is None:
            return b""
        if opcode.arg.n >= 0:
            return self._stream.take(opcode.arg.n)
        if opcode.arg.n == pickletools.UP_TO_NEWLINE:
            first = self._stream.line()
            return first + b" " + self._stream.line() if opcode.name in ("GLOBAL", "INST") else first
        size = int.from_bytes(self._stream.take(_LENGTH_BYTES[opcode.arg.n]), "little")
        if size <= _MAX_TEXT_BYTES:
            return self._stream.take(size)
        self._stream.skip(size)
        return b""

    def _step(self, opcode: pickletools.OpcodeInfo, argument: bytes) -> None:
        name = opcode.name
        if name in _TEXTS:
            self._stack.append(_text(argument))
        elif name in ("GLOBAL", "INST"):
            self._import(*argument.decode("utf-8", "replace").split(" ", 1))
            self._effect(opcode)
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            self._import(module, attribute)
            self._stack.append(None)
        elif name in ("EXT1", "EXT2", "EXT4"):  # a number that some module registered for a name
            self._import("copyreg", f"extension {int.from_bytes(argument, 'little')}")
            self._stack.append(None)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._remember(self._memoized if name == "MEMOIZE" else _index(name, argument))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo.get(_index(name, argument)))
        elif name == "DUP":
            self._stack.append(self._stack[-1] if self._stack else None)
        else:
            self._effect(opcode)

    def _effect(self, opcode: pickletools.OpcodeInfo) -> None:
        before = opcode.stack_before
        if pickletools.markobject in before:
            while self._stack and self._pop() is not pickletools.markobject:
                pass
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            self._pop()
        self._stack.extend(one if one is pickletools.markobject else None for one in opcode.stack_after)

    def _pop(self) -> object:
        return self._stack.pop() if self._stack else None

    def _remember(self, index: int) -> None:
        self._memoized += 1
        top = self._stack[-1] if self._stack else None
        self._memo.pop(index, None)
        if isinstance(top, str) and self._memo_bytes < _MAX_MEMO_BYTES:
            self._memo[index] = top
            self._memo_bytes += len(top) + 64

    def _import(self, module: object, name: object) -> None:
        found = tuple(one if isinstance(one, str) and one else UNKNOWN for one in (module, name))
        most = _MAX_IMPORTS if is_harmless(*found) else 2 * _MAX_IMPORTS
        if len(self.imports) < most:
            self.imports[found[0], found[1]] = None


def _text(argument: bytes) -> str | None:
    text = argument.decode("utf-8", "replace").strip("'\"")
    return text or None


def _index(name: str, argument: bytes) -> int:
    if name in ("PUT", "GET"):
        text = argument.strip()
        return int(text) if text.isdigit() and len(text) < 20 else -1
    return int.from_bytes(argument, "little")
