"""Signed envelopes: an order or state that a server may act on only when this master signed it, for it, lately.

The signature covers the exact bytes of the payload and every field beside it, so nothing can be re-used for another
server, generation or time. Ed25519 as in RFC 8032.
"""

from __future__ import annotations

import base64

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wire.errors import BadSignature, Expired, StaleGeneration, WrongServer

CLOCK_SKEW_S = 120.0
"""How far the clocks of master and server may be apart."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """`payload` is base64 of JSON. `generation` orders states; one-off orders carry 0, and a nonce in their payload."""

    purpose: str  # desired | order
    server_id: str
    generation: int
    issued_at: float
    expires_at: float
    payload: str
    signature: str  # base64


def _signed_bytes(envelope: Envelope) -> bytes:
    fields = (
        "stokehold-envelope-1",
        envelope.purpose,
        envelope.server_id,
        envelope.generation,
        envelope.issued_at,
        envelope.expires_at,
        envelope.payload,
    )
    return msgspec.json.encode(fields)


def seal(
    key: Ed25519PrivateKey,
    payload: msgspec.Struct,
    *,
    purpose: str,
    server_id: str,
    generation: int,
    now: float,
    ttl_s: float = 300.0,
) -> Envelope:
    """Sign `payload` for one server. `now` is Unix time."""
    unsigned = Envelope(
        purpose=purpose,
        server_id=server_id,
        generation=generation,
        issued_at=now,
        expires_at=now + ttl_s,
        payload=base64.b64encode(msgspec.json.encode(payload)).decode(),
        signature="",
    )
    signature = base64.b64encode(key.sign(_signed_bytes(unsigned))).decode()
    return msgspec.structs.replace(unsigned, signature=signature)


def open_envelope(
    key: Ed25519PublicKey,
    envelope: Envelope,
    *,
    purpose: str,
    server_id: str,
    now: float,
    newest_generation: int = 0,
) -> bytes:
    """The payload's JSON bytes, when this envelope may be acted on.

    Raises:
        BadSignature: not signed by `key`, altered, or meant for another purpose.
        WrongServer: made for another server.
        Expired: outside its validity, with `CLOCK_SKEW_S` allowed.
        StaleGeneration: older than `newest_generation` (the same generation is fine: states are whole).
    """
    try:
        key.verify(base64.b64decode(envelope.signature, validate=True), _signed_bytes(envelope))
    except (InvalidSignature, ValueError) as error:
        raise BadSignature("the signature does not fit: refused") from error
    if envelope.purpose != purpose:
        raise BadSignature(f"an envelope for {envelope.purpose!r} was sent as {purpose!r}: refused")
    if envelope.server_id != server_id:
        raise WrongServer(f"made for server {envelope.server_id}, this is {server_id}: refused")
    if not envelope.issued_at - CLOCK_SKEW_S <= now <= envelope.expires_at + CLOCK_SKEW_S:
        raise Expired(f"valid until {envelope.expires_at:.0f}, it is {now:.0f}: refused")
    if envelope.generation < newest_generation:
        raise StaleGeneration(f"generation {envelope.generation} is older than {newest_generation}: refused")
    return base64.b64decode(envelope.payload)
