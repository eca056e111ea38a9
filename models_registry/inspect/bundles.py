"""Sigstore bundles: which files they name, and who they say has signed. Nothing is verified.

Sources: sigstore_bundle.proto of sigstore/protobuf-specs; the DSSE envelope; in-toto's statement; the model signing
format of OpenSSF (docs/model_signing_format.md of model-transparency).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from models_registry.inspect.certificates import signer_of
from models_registry.inspect.claims import Claim
from models_registry.scan import MOST_FILES

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle"
_IN_TOTO = "application/vnd.in-toto+json"
_MODEL_SIGNING = "https://model_signing/signature/v1.0"
_MODEL_SIGNING_BEFORE = "https://model_signing/Digests/v0.1"
_WHOLE_MODEL = "."
"""The name of a model that is one file; the statement's subject then has the name of that file."""
_Decoded = TypeVar("_Decoded")
_MOST_OBJECTS = 2 * MOST_FILES + 1000  # a subject is an object with another one in it, for its digests


class Unreadable(Exception):
    """It is no bundle, or one that cannot be read: the message says why."""


@dataclass(frozen=True)
class Bundle:
    """`signer`: empty when none is told. `is_of_model`: it was made to sign a model."""

    signer: str
    claims: Iterator[Claim] = field(default_factory=lambda: iter(()))
    is_of_model: bool = False
    digest: str | None = None
    """Of a bundle that signs one file, which it does not name; empty: its digest is no sha256."""


class _Part(msgspec.Struct, frozen=True, rename="camel"):
    """A message of protobuf as JSON; what is not asked for is passed over."""


class _Certificate(_Part, frozen=True):
    raw_bytes: bytes = b""


class _Chain(_Part, frozen=True):
    certificates: list[_Certificate] = []


class _PublicKey(_Part, frozen=True):
    hint: str | None = None


class _Material(_Part, frozen=True):
    certificate: _Certificate | None = None
    x509_certificate_chain: _Chain | None = None
    public_key: _PublicKey | None = None


class _Envelope(_Part, frozen=True):
    payload: bytes
    payload_type: str = ""


class _MessageDigest(_Part, frozen=True):
    algorithm: str = ""
    digest: bytes = b""


class _MessageSignature(_Part, frozen=True):
    message_digest: _MessageDigest | None = None


class _Bundle(_Part, frozen=True):
    media_type: str
    verification_material: _Material | None = None
    dsse_envelope: _Envelope | None = None
    message_signature: _MessageSignature | None = None


class _Digests(_Part, frozen=True):
    sha256: str = ""


class _Subject(_Part, frozen=True):
    name: str | None = None
    digest: _Digests | None = None


class _Resource(_Part, frozen=True):
    name: str
    algorithm: str = ""
    digest: str = ""


class _Predicate(_Part, frozen=True):
    resources: list[_Resource] = []


class _Statement(_Part, frozen=True):
    predicate_type: str = ""
    subject: list[_Subject] = []
    predicate: msgspec.Raw = msgspec.Raw(b"{}")


def read_bundle(content: bytes) -> Bundle:
    """Raises Unreadable."""
    bundle = _decoded(_bounded(content), _Bundle)
    if not bundle.media_type.startswith(MEDIA_TYPE):
        raise Unreadable("it does not say that it is a Sigstore bundle")
    signer = _signer(bundle.verification_material)
    if bundle.dsse_envelope is not None:
        return _of_statement(signer, bundle.dsse_envelope)
    if bundle.message_signature is not None:
        return Bundle(signer, digest=_message_digest(bundle.message_signature.message_digest))
    raise Unreadable("it holds no signature")


def _of_statement(signer: str, envelope: _Envelope) -> Bundle:
    if envelope.payload_type != _IN_TOTO:
        raise Unreadable("it signs something that is no in-toto statement")
    statement = _decoded(_bounded(envelope.payload), _Statement)
    if statement.predicate_type == _MODEL_SIGNING:
        resources = _decoded(statement.predicate, _Predicate).resources
        return Bundle(signer, _of_resources(resources, statement.subject), is_of_model=True)
    is_of_model = statement.predicate_type == _MODEL_SIGNING_BEFORE
    return Bundle(signer, _of_subjects(statement.subject), is_of_model=is_of_model)


def _of_resources(resources: list[_Resource], subjects: list[_Subject]) -> Iterator[Claim]:
    """Parts of a file, if it is signed in parts, have `sha256-sharded-SIZE` for algorithm and a range in the name."""
    whole = (subjects[0].name if subjects else None) or _WHOLE_MODEL
    for one in resources:
        name = one.name.rsplit(":", 2)[0] if "-sharded-" in one.algorithm else one.name
        yield Claim(whole if name == _WHOLE_MODEL else name, one.digest if one.algorithm == "sha256" else "")


def _of_subjects(subjects: list[_Subject]) -> Iterator[Claim]:
    for one in subjects:
        if one.name:
            yield Claim(one.name, one.digest.sha256 if one.digest else "")


def _message_digest(digest: _MessageDigest | None) -> str:
    return digest.digest.hex() if digest is not None and digest.algorithm == "SHA2_256" else ""


def _signer(material: _Material | None) -> str:
    if material is None:
        return ""
    chain = material.x509_certificate_chain
    certificate = material.certificate or (chain.certificates[0] if chain and chain.certificates else None)
    if certificate is not None:
        return signer_of(certificate.raw_bytes)
    hint = material.public_key.hint if material.public_key else None
    return f"key {hint}" if hint else ""


def _bounded(content: bytes) -> bytes:
    """Objects are counted before any of them is made: this bounds the memory."""
    if content.count(b"{") > _MOST_OBJECTS:
        raise Unreadable("it names too many files")
    return content


def _decoded(content: bytes | msgspec.Raw, kind: type[_Decoded]) -> _Decoded:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise Unreadable(str(error)) from error
