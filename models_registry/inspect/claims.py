"""What signatures and checksum lists say of a version's files, compared with what these files are."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from models_registry.scan import MOST_FILES

_LONGEST_NAME = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMES_KEPT = 20
_NAME_KEPT = 200


class Claim(NamedTuple):
    """That the file `name`, as seen from where this is said, has this sha256; empty: another digest, or none."""

    name: str
    sha256: str = ""


class Compared(NamedTuple):
    """Files of a version that claims name: all of them, those that differ, and those without a sha256 to compare.

    `missing_count`: named, but not of this version. `whole`: no claim was left out.
    """

    covered_count: int
    differing: tuple[str, ...]
    differing_count: int
    uncompared_count: int
    missing_count: int
    whole: bool


def compare(claims: Iterator[Claim], source: str, digests: Mapping[str, str]) -> Compared:
    """`source`: path of the file with the claims; their names are relative to its folder. `digests`: sha256 by path.

    A file that is named several times differs when any of its sha256 does. What a list says of itself is passed over:
    `sha256sum * > SHA256SUMS` writes the hash of the list when it was empty.
    """
    covered, compared, differing, missing = set(), set(), set(), set()
    for claim in islice(claims, MOST_FILES):
        path = _path(claim.name, source)
        known = digests.get(path)
        if known is None:
            missing.add(hash(path))  # they are only counted, and may be long
        elif path != source:
            covered.add(path)
            if sha256 := _sha256(claim.sha256):
                compared.add(path)
                if sha256 != known:
                    differing.add(path)
    return Compared(
        covered_count=len(covered),
        differing=tuple(path[:_NAME_KEPT] for path in sorted(differing)[:_NAMES_KEPT]),
        differing_count=len(differing),
        uncompared_count=len(covered - compared),
        missing_count=len(missing),
        whole=next(claims, None) is None,
    )


def clean(text: object, most: int = _NAME_KEPT) -> str:
    """A text of a stranger as every database can keep it, and every page show it."""
    cut = str(text)[:most]
    return "".join(char if char.isprintable() else " " for char in cut).strip()


def _path(name: str, source: str) -> str:
    """It is looked up only, so it may lead anywhere. No path of a version is as long as one that is cut, or has a NUL,
    at which some Pythons 3.11 cut it."""
    if len(name) > _LONGEST_NAME or "\0" in name:
        return name[: _LONGEST_NAME + 1]
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), name))


def _sha256(digest: str) -> str:
    lower = digest.lower()
    return lower if _SHA256.fullmatch(lower) else ""
