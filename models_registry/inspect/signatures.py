"""Signatures and checksum lists among a version's files, and whether what they say of the files is so.

Nothing is verified: no key, no certificate, no log of a third party is trusted or asked. What is compared is the
sha256 that a signature or a list names with the manifest's. How much is read is bounded, whatever the files are.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from models_registry.inspect.bundles import MEDIA_TYPE, Unreadable, read_bundle
from models_registry.inspect.checksums import listed, lone_digest
from models_registry.inspect.claims import Claim, clean, compare
from models_registry.scan import MOST_FILES

MOST_SIGNATURES = 100
_MOST_BYTES = 4 << 20  # of one file
_MOST_BYTES_OF_ALL = 16 << 20
_HEAD_BYTES = 1024
_BUNDLE_NAME = re.compile(r"model\.sig|.+\.sigstore(?:\.json)?", re.IGNORECASE)
_LIST_NAME = re.compile(r"sha256sums?(?:\.txt)?|.+\.sha256(?:sums?)?", re.IGNORECASE)
_DETACHED_NAME = re.compile(r".+\.(?:sig|asc|gpg|pgp|minisig|p7s|p7|cms)", re.IGNORECASE)
_MAYBE_BUNDLE_NAME = re.compile(r".+\.(?:json|bundle)", re.IGNORECASE)
_NAMES = (_BUNDLE_NAME, _LIST_NAME, _DETACHED_NAME, _MAYBE_BUNDLE_NAME)
"""In the order in which files are looked at: those first that say the most."""
_SURELY_SIGNATURE = re.compile(r".+\.(?:sig|minisig|p7s)", re.IGNORECASE)
"""Names that nothing else has; the others are of keys and encrypted files, too."""
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")  # its object identifier. Source: RFC 5652, 5.1
_OPENPGP_TAGS = (b"\x88", b"\x89", b"\x8a", b"\xc2")  # a signature packet, old and new format. Source: RFC 9580, 4.2

_SUFFIX = re.compile(r"\.(?:sigstore\.json|[^./]+)$")
_SIGNED_TEXT = b"-----BEGIN PGP SIGNED MESSAGE-----"
_TOO_LARGE = "It is too large to be read."
_CUT = "It is too large to be read to its end."
_TOO_MANY = f"It names more than {MOST_FILES} files: the others were not looked at."


class Kind(StrEnum):
    MODEL_SIGNING = "model_signing"  # of OpenSSF: a Sigstore bundle that names all files of a model
    SIGSTORE = "sigstore"
    CHECKSUMS = "checksums"
    OPENPGP = "openpgp"
    MINISIGN = "minisign"  # and signify, from which its format comes
    SSH = "ssh"
    X509 = "x509"
    UNKNOWN = "unknown"


class Signature(msgspec.Struct, frozen=True):
    """One signature or checksum list. Counts are of files that it names, each counted once."""

    path: str
    kind: Kind
    signer: str = ""
    """Who it says has signed; empty: it does not say."""
    signed_file: str = ""
    """Of a signature that lies beside the one file that it is of."""
    covered_count: int = 0
    """Files of the version."""
    differing: tuple[str, ...] = ()
    """The first of those whose sha256 is another one."""
    differing_count: int = 0
    uncompared_count: int = 0
    """Files of the version of which it names no sha256."""
    missing_count: int = 0
    """Files that the version does not have."""
    note: str = ""
    """Why it was not read, or not to its end; empty: it was."""


_WITH_CLAIMS = (Kind.SIGSTORE, Kind.CHECKSUMS)
_MARKS = {
    b"-----BEGIN PGP SIGNATURE-----": Kind.OPENPGP,
    _SIGNED_TEXT: Kind.OPENPGP,
    b"-----BEGIN SSH SIGNATURE-----": Kind.SSH,
    b"-----BEGIN PKCS7-----": Kind.X509,
    b"-----BEGIN CMS-----": Kind.X509,
    b"untrusted comment:": Kind.MINISIGN,
}


def find_signatures(root: Path, digests: Mapping[str, str]) -> tuple[Signature, ...]:
    """The first MOST_SIGNATURES among the files below `root`. `digests`: sha256 of each file of the version by path."""
    found: list[Signature] = []
    left_bytes = _MOST_BYTES_OF_ALL
    for path in _candidates(digests):
        with (root / path).open("rb") as file:
            head = file.read(_HEAD_BYTES)
            kind = _kind(path, head)
            if kind is None:
                continue
            look = _Look(path, kind, digests)
            if kind in _WITH_CLAIMS or _SIGNED_TEXT in head:
                file.seek(0)
                content = file.read(min(_MOST_BYTES, left_bytes))
                left_bytes -= len(content)
                found.append(look.claims(content, whole=not file.read(1)))
            else:
                found.append(look.detached())
        if len(found) == MOST_SIGNATURES:
            break
    return tuple(sorted(found, key=lambda one: one.path))


def _candidates(paths: Iterable[str]) -> list[str]:
    """By their names, those first that say the most, and of these the ones nearest to the top."""
    ranked = []
    for path in paths:
        name = path.rpartition("/")[2]
        rank = next((rank for rank, pattern in enumerate(_NAMES) if pattern.fullmatch(name)), None)
        if rank is not None:
            ranked.append((rank, path.count("/"), path))
    return [path for _, _, path in sorted(ranked)]


def _kind(path: str, head: bytes) -> Kind | None:
    """What a file of such a name is, by what is in it; None: nothing that signs."""
    name = path.rpartition("/")[2]
    if _LIST_NAME.fullmatch(name):
        return Kind.CHECKSUMS
    if _MAYBE_BUNDLE_NAME.fullmatch(name) and not _BUNDLE_NAME.fullmatch(name):
        return Kind.SIGSTORE if MEDIA_TYPE.encode() in head else None
    for mark, kind in _MARKS.items():
        if mark in head:
            return kind
    if head.lstrip().startswith(b"{") or name.lower().endswith((".sigstore", ".sigstore.json")):
        return Kind.SIGSTORE
    if head[:1] == b"0" and _SIGNED_DATA in head[:64]:
        return Kind.X509
    if head[:1] in _OPENPGP_TAGS:
        return Kind.OPENPGP
    return Kind.UNKNOWN if _SURELY_SIGNATURE.fullmatch(name) else None


class _Look:
    """One look at one file."""

    def __init__(self, path: str, kind: Kind, digests: Mapping[str, str]) -> None:
        self._path = path
        self._kind = kind
        self._digests = digests
        self._of = _SUFFIX.sub("", path)

    def detached(self) -> Signature:
        return self._compared(iter((Claim(posixpath.basename(self._of)),)), signed_file=self._of)

    def claims(self, content: bytes, *, whole: bool) -> Signature:
        """`whole`: the content is all of the file."""
        if self._kind is Kind.SIGSTORE:
            return self._bundle(content) if whole else Signature(self._path, self._kind, note=_TOO_LARGE)
        if whole and (digest := lone_digest(content)):
            return self._compared(iter((Claim(posixpath.basename(self._of), digest),)), signed_file=self._of)
        lines = content if whole else content[: content.rfind(b"\n") + 1]
        return self._compared(listed(lines), note="" if whole else _CUT)

    def _bundle(self, content: bytes) -> Signature:
        try:
            bundle = read_bundle(content)
        except Unreadable as error:
            return Signature(self._path, self._kind, note=clean(f"It is not read as a Sigstore bundle: {error}."))
        if bundle.digest is not None:
            claim = Claim(posixpath.basename(self._of), bundle.digest)
            return self._compared(iter((claim,)), signer=bundle.signer, signed_file=self._of)
        found = self._compared(bundle.claims, signer=bundle.signer)
        return msgspec.structs.replace(found, kind=Kind.MODEL_SIGNING) if bundle.is_of_model else found

    def _compared(
        self, claims: Iterator[Claim], *, signer: str = "", signed_file: str = "", note: str = ""
    ) -> Signature:
        found = compare(claims, self._path, self._digests)
        return Signature(
            self._path,
            self._kind,
            signer=clean(signer),
            signed_file=signed_file,
            covered_count=found.covered_count,
            differing=found.differing,
            differing_count=found.differing_count,
            uncompared_count=found.uncompared_count,
            missing_count=found.missing_count,
            note=note or ("" if found.whole else _TOO_MANY),
        )
