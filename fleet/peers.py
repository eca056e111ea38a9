"""Which servers have, or are getting, a model version: whom others may fetch it from.

An index of what servers should have (their desired states) and what they say they have (`wire.messages.Cache`), kept in
memory and brought up to date row by row, as the rows' versions rise.
"""

from __future__ import annotations

import datetime as dt
import random
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import structlog
from django.conf import settings

from fleet.models import Server, ServerDesired, ServerState
from wire.manifest import Manifest
from wire.pieces import Peer

MAX_PEERS = 40

log = structlog.get_logger(__name__)


class _Version(NamedTuple):
    """What tells whether a server's row has to be read again."""

    generation: int
    cache_at: dt.datetime | None


class PeerIndex:
    """One a process. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[str, _Version] = {}
        self._known: dict[str, frozenset[str]] = {}  # of each server: digests, and the names that it tells of them

    def holders(self, what: str, but: str, now: dt.datetime) -> list[Peer]:
        """Live servers with (parts of) a version, in no order; `but` is left out.

        `what`: a manifest's digest, or `name:version`, by which those are found too that have only some of its files.
        """
        with self._lock:
            self._refresh(now)
            ids = [key for key, known in self._known.items() if what in known and key != but]
        random.shuffle(ids)
        rows = ServerState.objects.filter(server_id__in=ids[:MAX_PEERS]).values_list("server_id", "facts")
        return [
            Peer(server_id=server_id, addresses=tuple(facts["addresses"]), port=facts["relay_port"])
            for server_id, facts in rows
            if facts
        ]

    def _refresh(self, now: dt.datetime) -> None:
        since = now - dt.timedelta(seconds=settings.LEASE_S)
        live = Server.objects.filter(revoked_at__isnull=True, state__last_seen_at__gte=since)
        versions = {
            key: _Version(generation or 0, cache_at)
            for key, generation, cache_at in live.values_list("pk", "desired__generation", "state__cache_at")
        }
        stale = [key for key, version in versions.items() if self._versions.get(key) != version]
        payloads = dict(ServerDesired.objects.filter(server_id__in=stale).values_list("server_id", "payload"))
        caches = dict(ServerState.objects.filter(server_id__in=stale).values_list("server_id", "cache"))
        for key in stale:
            wanted = _digests_of(payloads.get(key) or {})
            cached = (caches.get(key) or {}).get("models", ())
            said = {model[field] for model in cached for field in ("digest", "model_name")}
            self._known[key] = frozenset(said | wanted)
        self._known = {key: self._known[key] for key in versions}
        self._versions = versions


def _digests_of(payload: dict[str, Any]) -> set[str]:
    models: Iterable[Any] = [part["model"] for part in (*payload.get("instances", ()), *payload.get("held", ()))]
    found = set()
    for model in models:
        try:
            found.add(msgspec.convert(model, Manifest).digest)
        except msgspec.ValidationError as error:
            log.error("desired.unreadable", error=str(error))
    return found


peers = PeerIndex()
