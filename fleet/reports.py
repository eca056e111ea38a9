"""What nodes report, put into rows: many nodes in one short transaction."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from django.db import DatabaseError, IntegrityError, InterfaceError, transaction

from fleet.models import Gateway, GatewayState, Server, ServerDesired, ServerState
from fleet.signals import server_observed
from wire.feed import GatewayHello, GatewayStatus
from wire.messages import Cache, Hello, Metrics, Observed

log = structlog.get_logger(__name__)


@dataclass
class ServerReport:
    """Newest of each kind that a server said since the last write."""

    server_id: str
    seen_at: dt.datetime
    connected_since: dt.datetime | None = None
    hello: Hello | None = None
    observed: Observed | None = None
    metrics: Metrics | None = None
    metrics_at: dt.datetime | None = None
    cache: Cache | None = None

    def absorb(self, newer: ServerReport) -> None:
        """Take over what `newer` says; the rest stays."""
        self.seen_at = max(self.seen_at, newer.seen_at)
        self.connected_since = newer.connected_since or self.connected_since
        self.hello = newer.hello or self.hello
        self.observed = newer.observed or self.observed
        self.cache = newer.cache or self.cache
        if newer.metrics is not None:
            self.metrics, self.metrics_at = newer.metrics, newer.metrics_at


@dataclass
class GatewayReport:
    """Newest of each kind that a gateway said since the last write."""

    gateway_id: str
    seen_at: dt.datetime
    connected_since: dt.datetime | None = None
    hello: GatewayHello | None = None
    status: GatewayStatus | None = None

    def absorb(self, newer: GatewayReport) -> None:
        self.seen_at = max(self.seen_at, newer.seen_at)
        self.connected_since = newer.connected_since or self.connected_since
        self.hello = newer.hello or self.hello
        self.status = newer.status or self.status


def store_server_reports(reports: Iterable[ServerReport]) -> list[ServerReport]:
    """Write reports, then tell `server_observed`. Returns those whose receivers failed, to be told again.

    Raises DatabaseError when nothing was written.
    """
    reports = list(reports)
    rows = [(report.server_id, _server_columns(report)) for report in reports]
    _upsert(ServerState, "server_id", Server, rows)
    for report in reports:
        if report.hello is not None and report.hello.generation > 0:
            _outgrow_accepted_generation(report.server_id, report.hello.generation, report.seen_at)
    return [report for report in reports if report.observed is not None and not _tell_observed(report)]


def store_gateway_reports(reports: Iterable[GatewayReport]) -> None:
    """Write reports of gateways. Raises DatabaseError when nothing was written."""
    _upsert(GatewayState, "gateway_id", Gateway, [(report.gateway_id, _gateway_columns(report)) for report in reports])


def _server_columns(report: ServerReport) -> dict[str, Any]:
    columns: dict[str, Any] = {"last_seen_at": report.seen_at}
    if report.connected_since is not None:
        columns["connected_since"] = report.connected_since
    if report.hello is not None:
        columns |= {
            "release": report.hello.release[:32],
            "protocol": report.hello.protocol,
            "host_id": report.hello.facts.host_id[:32],
            "facts": plain(report.hello.facts),
            "observed_generation": report.hello.generation,
        }
    if report.observed is not None:
        columns |= {
            "observed": plain(report.observed),
            "observed_generation": report.observed.generation,
            "rejected": report.observed.rejected,
        }
    if report.cache is not None:
        columns |= {"cache": plain(report.cache), "cache_at": report.seen_at}
    if report.metrics is not None:
        columns |= {"load": plain(report.metrics.load), "load_at": report.metrics_at or report.seen_at}
    return columns


def _gateway_columns(report: GatewayReport) -> dict[str, Any]:
    columns: dict[str, Any] = {"last_seen_at": report.seen_at}
    if report.connected_since is not None:
        columns["connected_since"] = report.connected_since
    if report.hello is not None:
        columns |= {
            "release": report.hello.release[:32],
            "host_id": report.hello.host_id[:32],
            "base_url": report.hello.base_url[:200],
        }
    if report.status is not None:
        columns |= {
            "routable": list(report.status.routable),
            "in_flight": dict(report.status.in_flight),
            "requests_per_minute": report.status.requests_per_minute,
            "tokens_per_minute": report.status.tokens_per_minute,
        }
    return columns


def _upsert(model: Any, key: str, parent: Any, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """One INSERT ... ON CONFLICT per set of columns: as cheap for a thousand rows as for one."""
    by_columns: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for node_id, columns in rows:
        by_columns[tuple(columns)].append(model(**{key: node_id}, **columns))
    try:
        _upsert_groups(model, key, by_columns)
    except IntegrityError:  # a node was deleted meanwhile: leave it out
        existing = set(parent.objects.filter(pk__in=[node_id for node_id, _ in rows]).values_list("pk", flat=True))
        kept = {names: [row for row in group if getattr(row, key) in existing] for names, group in by_columns.items()}
        _upsert_groups(model, key, kept)


def _upsert_groups(model: Any, key: str, groups: dict[tuple[str, ...], list[Any]]) -> None:
    with transaction.atomic():
        for names, group in groups.items():
            model.objects.bulk_create(
                sorted(group, key=lambda row: row.pk),  # one order for all writers: no deadlock
                update_conflicts=True,
                unique_fields=[key],
                update_fields=list(names),
                batch_size=500,
            )


def _outgrow_accepted_generation(server_id: str, accepted: int, now: dt.datetime) -> None:
    """After the database went back in time (a restore), an agent would refuse its state as older: number it anew."""
    behind = ServerDesired.objects.filter(server_id=server_id, generation__gt=0, generation__lt=accepted)
    for desired in behind:
        payload = desired.payload | {"generation": accepted + 1}
        changed = ServerDesired.objects.filter(server_id=server_id, generation=desired.generation).update(
            generation=accepted + 1, payload=payload, updated_at=now
        )
        if changed:
            log.warning("desired.renumbered", server=server_id, was=desired.generation, generation=accepted + 1)


def _tell_observed(report: ServerReport) -> bool:
    answers = server_observed.send_robust(
        sender=None, server_id=report.server_id, observed=report.observed, now=report.seen_at
    )
    done = True
    for receiver, answer in answers:
        if isinstance(answer, DatabaseError | InterfaceError):
            done = False
        if isinstance(answer, Exception):
            log.error("observed.receiver_failed", server=report.server_id, receiver=repr(receiver), exc_info=answer)
    return done


def plain(value: msgspec.Struct) -> Any:
    """A message as JSON-ready values, for a JSONField."""
    return msgspec.json.decode(msgspec.json.encode(value))
