"""How a node joins, without the transport: what to send, what to check, what to keep.

1. Fetch the CA's PEM from `JOIN_CA_PATH` over an unverified TLS connection: `check_ca` against the token's fingerprint.
2. From then on verify TLS against that CA only. `POST JOIN_PATH` with `make_request`.
3. Keep `make_identity` of the reply on disk, mode 0600.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from wire import certs
from wire.errors import BadToken
from wire.messages import JoinReply, JoinRequest
from wire.tokens import JoinToken


class NodeKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Private keys (PEM), made on the node. They never leave it."""

    signing_key_pem: str
    tls_key_pem: str
    signing_public_pem: str
    tls_public_pem: str


class NodeIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """All a joined node needs to prove itself and to check its master."""

    node_id: str
    name: str
    role: str
    master_url: str
    signing_key_pem: str
    tls_key_pem: str
    certificate_pem: str
    ca_pem: str
    master_public_key_pem: str


def make_keys() -> NodeKeys:
    signing, tls = certs.make_signing_key(), certs.make_tls_key()
    return NodeKeys(
        signing_key_pem=signing.private_pem,
        tls_key_pem=tls.private_pem,
        signing_public_pem=signing.public_pem,
        tls_public_pem=tls.public_pem,
    )


def check_ca(token: JoinToken, ca_pem: str) -> None:
    """Raises BadToken when this CA is not the one that the token was made by."""
    try:
        fingerprint = certs.fingerprint(ca_pem)
    except ValueError as error:
        raise BadToken("the master sent no certificate: is this address a Stokehold master?") from error
    if not hmac.compare_digest(fingerprint, token.ca_fingerprint):
        raise BadToken(
            "this master has another CA than the one the join token was made by: nothing was sent to it",
            remedy="Check the master's address; if it is right, make a new join token there.",
        )


def make_request(token: JoinToken, keys: NodeKeys, *, name: str, role: str, addresses: tuple[str, ...]) -> JoinRequest:
    return JoinRequest(
        token=str(token),
        name=name,
        public_key_pem=keys.signing_public_pem,
        tls_public_key_pem=keys.tls_public_pem,
        role=role,
        addresses=addresses,
    )


def make_identity(keys: NodeKeys, reply: JoinReply, *, role: str, master_url: str) -> NodeIdentity:
    return NodeIdentity(
        node_id=reply.node_id,
        name=reply.name,
        role=role,
        master_url=master_url,
        signing_key_pem=keys.signing_key_pem,
        tls_key_pem=keys.tls_key_pem,
        certificate_pem=reply.certificate_pem,
        ca_pem=reply.ca_pem,
        master_public_key_pem=reply.signing_public_key_pem,
    )


def host_id(machine_id: str, boot_id: str, network: str) -> str:
    """Same for all nodes that share one loopback, tells nothing else.

    `network` names the network namespace: containers of one host have other loopbacks, whatever their machine id.
    """
    return hashlib.sha256(f"{machine_id.strip()}:{boot_id.strip()}:{network}".encode()).hexdigest()[:16]


def reconnect_delay_s(attempt: int, jitter: float) -> float:
    """Pause before reconnect number `attempt` (from 0): under 1 s first, at most 5 s. `jitter` is uniform in [0, 1)."""
    ceiling = min(5.0, 0.8 * 1.7 ** min(attempt, 10))
    return ceiling * (0.5 + 0.5 * jitter)
