"""The verbs of the fleet. Joining has its own module (`join.py`), what nodes report another (`reports.py`)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import msgspec
import structlog
from django.conf import settings
from django.db import transaction

from fleet.ca import signing_key
from fleet.errors import AgentUnreachable, BadJoinRequest, BadJoinToken, FleetError, NameTaken, Revoked
from fleet.hints import FEED, LINKS, hint_on_commit
from fleet.join import create_join_token, issue_join_token, join_node
from fleet.models import (
    Availability,
    Gateway,
    GatewayState,
    RevokedCertificate,
    Role,
    Server,
    ServerDesired,
    ServerState,
)
from fleet.reports import ServerReport, plain, store_server_reports
from wire import certs, envelope, tokens
from wire.errors import BadToken
from wire.messages import CachePolicy, DesiredState, HeldModel, Hello, InstanceSpec, Metrics, Observed

log = structlog.get_logger(__name__)

__all__ = [
    "AgentUnreachable",
    "BadJoinRequest",
    "BadJoinToken",
    "FleetError",
    "NameTaken",
    "Revoked",
    "authenticate_node",
    "create_join_token",
    "issue_join_token",
    "join_node",
    "live_gateways",
    "mark_found",
    "mark_lost",
    "record_disconnect",
    "record_hello",
    "record_metrics",
    "record_observed",
    "revoke_gateway",
    "revoke_server",
    "set_availability",
    "set_desired",
]


# ------------------------------------------------------------------------------------------------ decisions of people


def set_availability(server: Server, availability: Availability, now: dt.datetime) -> None:
    """Cordon (nothing new), drain (moves away what it has) or activate a server."""
    server.availability = Availability(availability)
    server.save(update_fields=["availability"])
    log.info("server.availability", server=server.pk, name=server.name, availability=str(server.availability))


def revoke_server(server: Server, now: dt.datetime) -> None:
    """Cut its link at once and for good, and have every peer refuse its certificate; its name can be joined anew."""
    with transaction.atomic():
        _revoke(server, now)
        hint_on_commit(LINKS, {"type": "changed", "server_id": server.pk})


def revoke_gateway(gateway: Gateway, now: dt.datetime) -> None:
    """Cut its link at once and for good, and have every relay refuse its certificate; its name can be joined anew."""
    with transaction.atomic():
        _revoke(gateway, now)
        hint_on_commit(FEED, {"type": "changed"})


def _refuse_certificate(node: Server | Gateway, now: dt.datetime) -> None:
    """Every relay is told, by its desired state."""
    if not node.certificate_pem:
        return
    RevokedCertificate.objects.get_or_create(
        serial=certs.serial(node.certificate_pem),
        defaults={"node_id": node.pk, "revoked_at": now, "expires_at": certs.expires_at(node.certificate_pem)},
    )
    for row in ServerDesired.objects.select_for_update().order_by("pk"):
        _raise_desired(row, {}, now)


def _revoke(node: Server | Gateway, now: dt.datetime) -> None:
    if node.revoked_at is not None:
        return
    node.revoked_at = now
    node.save(update_fields=["revoked_at"])
    _refuse_certificate(node, now)
    log.info("node.revoked", node=node.pk, name=node.name)


# ------------------------------------------------------------------------------------------------ links


def authenticate_node(bearer: str, role: Role | str, now: dt.datetime) -> Server | Gateway:
    """The node that made this token (`Bearer` in front or not).

    Raises:
        BadToken: not made by the key of a node of that role in the last minute (2 min skew).
        Revoked: the node was revoked.
    """
    token = bearer.removeprefix("Bearer ").strip()
    node_id = tokens.claimed_node(token)
    model = Server if role == Role.AGENT else Gateway
    node = model.objects.filter(pk=node_id).first()
    if node is None:
        raise BadToken(f"no {role} has the id {node_id[:40]!r} here")
    tokens.verify_node_token(certs.load_verify_key(node.public_key_pem), token, node.pk)
    if node.revoked_at is not None:
        raise Revoked(f"{node.name} was revoked at {node.revoked_at:%Y-%m-%d %H:%M} UTC")
    return node


@dataclass(frozen=True)
class Standing:
    """What a link must know of its server: whether it may go on, and which state is the newest."""

    revoked: bool
    generation: int
    connected_since: dt.datetime | None


def standings(server_ids: Collection[str]) -> dict[str, Standing]:
    """Of each server that still exists, in one query."""
    rows = Server.objects.filter(pk__in=server_ids).values_list(
        "pk", "revoked_at", "desired__generation", "state__connected_since"
    )
    return {pk: Standing(revoked is not None, generation or 0, since) for pk, revoked, generation, since in rows}


def sealed_states(server_ids: Collection[str], now: dt.datetime) -> dict[str, envelope.Envelope]:
    """Signed desired state of each server; one that was never given any has an empty one of generation 0.

    One that cannot be read is left out, so that it holds up no other.
    """
    found = dict(ServerDesired.objects.filter(server_id__in=server_ids).values_list("server_id", "payload"))
    sealed = {}
    for server_id in server_ids:
        try:
            sealed[server_id] = _seal(desired_of(server_id, found.get(server_id)), now)
        except msgspec.ValidationError as error:
            log.error("desired.unreadable", server=server_id, error=str(error))
    return sealed


def desired_of(server_id: str, payload: dict[str, object] | None) -> DesiredState:
    """A row's payload as a message."""
    if not payload:
        return DesiredState(server_id=server_id, generation=0)
    return msgspec.convert(payload, DesiredState)


def _seal(state: DesiredState, now: dt.datetime) -> envelope.Envelope:
    return envelope.seal(
        signing_key(),
        state,
        purpose="desired",
        server_id=state.server_id,
        generation=state.generation,
        now=now.timestamp(),
    )


# ------------------------------------------------------------------------------------------------ desired state


def set_desired(
    server_id: str,
    instances: tuple[InstanceSpec, ...],
    now: dt.datetime,
    *,
    held: tuple[HeldModel, ...] = (),
    cache: CachePolicy | None = None,
) -> int:
    """Make `instances` all that should run on a server; its generation, raised only when that is a change.

    `held` are the model versions it should have beside; `cache` its rules for keeping them.
    The generation also outgrows any that the agent ever accepted, so that it is never refused as older.
    """
    with transaction.atomic():
        row, _ = ServerDesired.objects.select_for_update().get_or_create(server_id=server_id)
        wanted: dict[str, object] = {
            "instances": [plain(spec) for spec in instances],
            "held": [plain(one) for one in held],
            "cache": plain(cache or CachePolicy()),
        }
        before = {"instances": [], "held": [], "cache": plain(CachePolicy())} | row.payload
        if all(before[part] == wanted[part] for part in wanted):
            return row.generation
        return _raise_desired(row, wanted, now)


def _raise_desired(row: ServerDesired, changed: dict[str, object], now: dt.datetime) -> int:
    """Write a new generation of a locked row, with the certificates that are revoked by now."""
    server_id = row.server_id
    accepted = ServerState.objects.filter(server_id=server_id).values_list("observed_generation", flat=True).first()
    generation = max(row.generation, accepted or 0) + 1
    revoked = RevokedCertificate.objects.filter(expires_at__gt=now).order_by("pk").values_list("pk", flat=True)
    payload = {
        "instances": [],
        **row.payload,
        **changed,
        "server_id": server_id,
        "generation": generation,
        "revoked_certificates": list(revoked),
    }
    ServerDesired.objects.filter(pk=row.pk).update(generation=generation, payload=payload, updated_at=now)
    hint_on_commit(LINKS, {"type": "changed", "server_id": server_id})
    log.info("desired.raised", server=server_id, generation=generation, instances=len(payload["instances"]))
    return generation


# ------------------------------------------------------------------------------------------------ observed state


def record_hello(server_id: str, hello: Hello, now: dt.datetime, connected_since: dt.datetime | None = None) -> None:
    """An agent connected."""
    store_server_reports([ServerReport(server_id, now, connected_since=connected_since or now, hello=hello)])


def record_observed(server_id: str, observed: Observed, now: dt.datetime) -> None:
    """Store what an agent sees, and tell `fleet.signals.server_observed`."""
    store_server_reports([ServerReport(server_id, now, observed=observed)])


def record_metrics(server_id: str, metrics: Metrics, now: dt.datetime) -> None:
    """A heartbeat: renews the server's lease."""
    store_server_reports([ServerReport(server_id, now, metrics=metrics, metrics_at=now)])


def record_disconnect(server_id: str, connected_since: dt.datetime | None = None) -> None:
    """The link that came up at `connected_since` is gone; a newer one's row is left alone. None: whichever it was."""
    rows = ServerState.objects.filter(server_id=server_id)
    if connected_since is not None:
        rows = rows.filter(connected_since=connected_since)
    rows.update(connected_since=None)


def mark_lost(server_ids: Iterable[str], now: dt.datetime) -> None:
    """Their lease ran out."""
    ServerState.objects.filter(server_id__in=list(server_ids), lost_at__isnull=True).update(lost_at=now)


def mark_found(server_ids: Iterable[str], now: dt.datetime) -> None:
    """They are back."""
    ServerState.objects.filter(server_id__in=list(server_ids)).update(lost_at=None)


def live_gateways(now: dt.datetime) -> list[GatewayState]:
    """States of the gateways that spoke within the lease and are not revoked."""
    since = now - dt.timedelta(seconds=settings.LEASE_S)
    rows = GatewayState.objects.filter(gateway__revoked_at__isnull=True, last_seen_at__gte=since)
    return list(rows.select_related("gateway").order_by("gateway__name"))
