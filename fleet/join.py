"""Joining: single-use tokens, and what a node that shows one gets."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import string
from urllib.parse import urlsplit

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings
from django.db import IntegrityError, transaction

from fleet import ca
from fleet.errors import BadJoinRequest, BadJoinToken, NameTaken
from fleet.models import Gateway, GatewayState, JoinToken, Role, Server, ServerState
from wire import certs, errors, tokens
from wire.messages import JoinReply, JoinRequest

log = structlog.get_logger(__name__)

DEFAULT_TTL = dt.timedelta(hours=1)
MAX_TTL = dt.timedelta(days=7)
MAX_ADDRESSES = 32
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
_ID_ALPHABET = string.ascii_lowercase + string.digits
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")


def issue_join_token(
    *,
    role: str = "agent",
    ttl: dt.timedelta = DEFAULT_TTL,
    note: str = "",
    created_by: object | None = None,
    now: dt.datetime,
) -> tuple[JoinToken, str]:
    """A new token's row, and its whole text, which is nowhere kept."""
    if role not in Role.values:
        raise BadJoinRequest(f"there is no role {role!r}", remedy="Use agent or gateway.")
    if not dt.timedelta(0) < ttl <= MAX_TTL:
        raise BadJoinRequest("a join token lives between a second and 7 days", remedy="Choose a shorter time.")
    token = tokens.JoinToken(
        token_id="".join(secrets.choice(_ID_ALPHABET) for _ in range(8)),
        secret=secrets.token_hex(32),
        ca_fingerprint=ca.ca_fingerprint(),
    )
    row = JoinToken.objects.create(
        token_id=token.token_id,
        secret_hash=_hash(token.secret),
        role=role,
        note=note[:200],
        created_by=created_by,  # type: ignore[misc]
        expires_at=now + ttl,
    )
    log.info("join_token.made", token=token.token_id, role=role, expires_at=row.expires_at.isoformat())
    return row, str(token)


def create_join_token(
    *,
    role: str = "agent",
    ttl: dt.timedelta = DEFAULT_TTL,
    note: str = "",
    created_by: object | None = None,
    now: dt.datetime,
) -> str:
    """Whole text of a new join token."""
    return issue_join_token(role=role, ttl=ttl, note=note, created_by=created_by, now=now)[1]


def join_node(request: JoinRequest, now: dt.datetime) -> JoinReply:
    """Take a node in: use up its token, keep its public key, certify it. All of it, or nothing.

    Raises:
        BadJoinToken: `code` is join_token_unknown, _expired, _used, _role or _foreign.
        BadJoinRequest: a name, key or address that cannot be certified.
        NameTaken: a server or gateway of that name is in the fleet, and not revoked.
    """
    row = _find_token(request, now)
    addresses = check_addresses(request.addresses)
    _check_keys(request)
    if not _NAME.fullmatch(request.name):
        raise BadJoinRequest(
            f"{request.name[:80]!r} is no name for a node",
            remedy="Use letters, digits, '.', '_' and '-', at most 63, with a letter or digit at both ends (--name).",
        )
    try:
        with transaction.atomic():
            node = _own_name(request)
            _use_up(row, node.pk, now)
            node.certificate_pem = ca.issue_node_certificate(
                request.tls_public_key_pem, node_id=node.pk, role=request.role, addresses=addresses, now=now
            )
            node.certificate_expires_at = certs.expires_at(node.certificate_pem)
            node.save()
            _reset_state(node)
    except IntegrityError as error:  # another join of that name was quicker
        raise _name_taken(request) from error
    log.info("node.joined", role=request.role, node=node.pk, name=node.name, token=row.token_id)
    return JoinReply(
        node_id=node.pk,
        name=node.name,
        certificate_pem=node.certificate_pem,
        ca_pem=ca.ca_pem(),
        signing_public_key_pem=ca.signing_public_pem(),
    )


def check_addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses, in lower case; BadJoinRequest when one may not be certified."""
    if len(addresses) > MAX_ADDRESSES:
        raise BadJoinRequest(f"{len(addresses)} addresses; at most {MAX_ADDRESSES} are certified")
    return tuple(dict.fromkeys(_check_address(address) for address in addresses))


def _check_address(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        name = address.lower().rstrip(".")
    if name == ca.INTERNAL_DOMAIN or name.endswith(f".{ca.INTERNAL_DOMAIN}"):
        raise BadJoinRequest(f"{address[:80]!r}: names below {ca.INTERNAL_DOMAIN} are the master's to give")
    if len(name) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in name.split(".")):
        raise BadJoinRequest(f"{address[:80]!r} is neither an IP address nor a host name")
    return name


def _find_token(request: JoinRequest, now: dt.datetime) -> JoinToken:
    try:
        token = tokens.parse_join_token(request.token)
    except errors.BadToken as error:
        raise BadJoinToken(error.message) from error
    if not hmac.compare_digest(token.ca_fingerprint, ca.ca_fingerprint()):
        raise BadJoinToken("the join token was made by another master", code="join_token_foreign")
    row = JoinToken.objects.filter(token_id=token.token_id).first()
    if row is None or not hmac.compare_digest(row.secret_hash, _hash(token.secret)):
        raise BadJoinToken("no such join token here: it was deleted, or was not copied whole")
    if row.role != request.role:
        raise BadJoinToken(f"the join token is for role {row.role}, not {request.role[:20]}", code="join_token_role")
    _check_unspent(row, now)
    return row


def _check_unspent(row: JoinToken, now: dt.datetime) -> None:
    if row.used_at is not None:
        raise BadJoinToken(f"the join token was used already, by {row.used_by}", code="join_token_used")
    if row.expires_at <= now:
        raise BadJoinToken(f"the join token expired at {row.expires_at:%Y-%m-%d %H:%M} UTC", code="join_token_expired")


def _use_up(row: JoinToken, node_id: str, now: dt.datetime) -> None:
    """One conditional update decides who was first, on every database."""
    unused = JoinToken.objects.filter(pk=row.pk, used_at__isnull=True, expires_at__gt=now)
    if unused.update(used_at=now, used_by=node_id) != 1:
        raise BadJoinToken("the join token was used already", code="join_token_used")


def _check_keys(request: JoinRequest) -> None:
    try:
        certs.load_verify_key(request.public_key_pem)
        tls = serialization.load_pem_public_key(request.tls_public_key_pem.encode())
    except ValueError as error:
        raise BadJoinRequest(f"a public key is unusable: {error}") from error
    if not isinstance(tls, ec.EllipticCurvePublicKey):
        raise BadJoinRequest("the TLS key is not an EC key")


def _own_name(request: JoinRequest) -> Server | Gateway:
    """The node's row, new, or a revoked one of that name taken over."""
    model = Server if request.role == Role.AGENT else Gateway
    node = model.objects.filter(name=request.name).first()
    if node is None:
        return model(name=request.name, public_key_pem=request.public_key_pem)
    if node.revoked_at is None:
        raise _name_taken(request)
    node.public_key_pem = request.public_key_pem
    node.revoked_at = None
    return node


def _name_taken(request: JoinRequest) -> NameTaken:
    kind = "server" if request.role == Role.AGENT else "gateway"
    return NameTaken(
        f"there is a {kind} named {request.name!r} already",
        remedy=f"Join with another --name; or, when it is that very {kind} set up anew, revoke the old one first. "
        "The join token can still be used.",
    )


def _reset_state(node: Server | Gateway) -> None:
    """A node that joins has been seen by nobody yet: what an earlier one of its name said does not count."""
    if isinstance(node, Server):
        ServerState.objects.update_or_create(server=node, defaults=_UNSEEN_SERVER)
    else:
        GatewayState.objects.update_or_create(gateway=node, defaults=_UNSEEN_GATEWAY)


_UNSEEN_SERVER = {
    "connected_since": None,
    "last_seen_at": None,
    "lost_at": None,
    "facts": None,
    "load": None,
    "load_at": None,
    "observed": None,
    "observed_generation": 0,
    "rejected": "",
}
_UNSEEN_GATEWAY = {"connected_since": None, "last_seen_at": None, "routable": [], "in_flight": {}}


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def join_command(role: str, token: str, seen_as: str = "") -> str:
    """The shell command to run on the machine that is to join: it joins and goes on running.

    `seen_as` is the host name by which a person just reached this master: another machine may do the same.
    """
    return f"./stokehold {role} run --home ~/stokehold-{role} --master {link_url(seen_as)} --token {token}"


def unreachable() -> str:
    """Why no other machine can join now; empty when nothing speaks against it."""
    listen = settings.OPTIONS.get("listen", "")
    if listen in _LOOPBACK:
        return f"This master listens on {listen} only: `./stokehold down`, then `./stokehold up --listen 0.0.0.0`."
    return ""


def link_url(seen_as: str = "") -> str:
    """Address of the link port as other machines see it: a loopback one is replaced by this host's own."""
    parts = urlsplit(settings.LINK_BASE_URL)
    if parts.hostname not in _LOOPBACK:
        return settings.LINK_BASE_URL
    host = _outward_address() if seen_as in ("", *_LOOPBACK) else seen_as
    return f"https://{host}:{parts.port or 443}"


def _outward_address() -> str:
    """This host's address on the way out; no packet is sent. Loopback when there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1, RFC 5737
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address
