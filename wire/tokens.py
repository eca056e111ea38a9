"""Join tokens, and the short-lived JWTs by which a node proves itself on its link."""

from __future__ import annotations

import re
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wire.errors import BadToken

NODE_TOKEN_TTL_S = 60.0
_AUDIENCE = "stokehold-master"
_LEEWAY_S = 120.0
_JOIN = re.compile(r"stk-join-([0-9a-z]{8})-([0-9A-Za-z_]{32,64})-([0-9a-f]{64})")


@dataclass(frozen=True)
class JoinToken:
    """`stk-join-<id>-<secret>-<sha256 of the CA certificate>`"""

    token_id: str
    secret: str
    ca_fingerprint: str

    def __str__(self) -> str:
        return f"stk-join-{self.token_id}-{self.secret}-{self.ca_fingerprint}"


def parse_join_token(text: str) -> JoinToken:
    """Raises BadToken when it does not look like a join token."""
    match = _JOIN.fullmatch(text.strip())
    if match is None:
        raise BadToken("this is not a join token (stk-join-...): was it copied whole?")
    return JoinToken(*match.groups())


def make_node_token(key: Ed25519PrivateKey, node_id: str, now: float) -> str:
    """EdDSA JWT (RFC 8037) that says: I am node `node_id`, now. Sent as `Authorization: Bearer`."""
    claims = {"sub": node_id, "aud": _AUDIENCE, "iat": int(now), "exp": int(now + NODE_TOKEN_TTL_S)}
    return jwt.encode(claims, key, algorithm="EdDSA")


def claimed_node(token: str) -> str:
    """Node id that an unverified token claims, to look up its key. Raises BadToken."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise BadToken("not a node token") from error
    node_id = claims.get("sub")
    if not isinstance(node_id, str):
        raise BadToken("the node token names no node")
    return node_id


def verify_node_token(key: Ed25519PublicKey, token: str, node_id: str) -> None:
    """Raises BadToken unless `token` was made by `key`'s owner for `node_id` within the last minute (2 min skew)."""
    try:
        claims = jwt.decode(token, key, algorithms=["EdDSA"], audience=_AUDIENCE, leeway=_LEEWAY_S)
    except jwt.PyJWTError as error:
        raise BadToken(f"node token refused: {error}", remedy="Check the node's clock, or join it again.") from error
    if claims.get("sub") != node_id:
        raise BadToken("the node token is another node's")
