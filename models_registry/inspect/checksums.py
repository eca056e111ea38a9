"""Lists of checksums, as sha256sum and the BSDs' tools write them.

Sources: the manual of GNU coreutils (md5sum invocation: the format of its output), sha256(1) of FreeBSD.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from models_registry.inspect.claims import Claim

_LINE = re.compile(
    rb"^(?:\xef\xbb\xbf)?(?:- )?(?P<escaped>\\?)(?:"  # a byte order mark; how a signed text of OpenPGP escapes a line
    rb"(?P<digest>[0-9a-fA-F]{32,128})(?:[ \t][ \t*]|[ \t])(?P<name>[^\r\n]{1,4096}+)"
    rb"|(?P<algorithm>[A-Za-z0-9/_-]{2,20}) ?\((?P<bsd_name>[^\r\n]{1,4096})\) ?= ?(?P<bsd_digest>[0-9a-fA-F]{32,128})"
    rb")\r?$",
    re.MULTILINE,
)
"""Every repetition is bounded, or not gone back into: a line is looked at once, however long it is."""
_LONE = re.compile(rb"(?:\xef\xbb\xbf)?\s{0,8}([0-9a-fA-F]{64})\s{0,8}")
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_SHA256_NAMES = (b"SHA256", b"SHA2-256")
_SHA256_DIGITS = 64


def listed(content: bytes) -> Iterator[Claim]:
    """Claims of the lines that are such; everything else is passed over."""
    for found in _LINE.finditer(content):
        algorithm = found["algorithm"]
        digest, name = found["bsd_digest" if algorithm else "digest"], found["bsd_name" if algorithm else "name"]
        comparable = len(digest) == _SHA256_DIGITS and (algorithm is None or algorithm.upper() in _SHA256_NAMES)
        yield Claim(_name(name, bool(found["escaped"])), digest.decode() if comparable else "")


def lone_digest(content: bytes) -> str:
    """The sha256 that is all that a file says; empty: it says something else."""
    found = _LONE.fullmatch(content)
    return found[1].decode() if found else ""


def _name(name: bytes, escaped: bool) -> str:
    plain = _ESCAPE.sub(_unescaped, name) if escaped else name
    return plain.decode("utf-8", errors="replace")


def _unescaped(found: re.Match[bytes]) -> bytes:
    return {b"n": b"\n", b"r": b"\r"}.get(found[1], found[1])
