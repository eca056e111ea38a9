"""All parts of one gateway process, and how they hang together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.accesslog import AccessLog
from gateway.fair import Turns
from gateway.family import ChildFeed
from gateway.feed import Change, Feed
from gateway.guards import Guards
from gateway.metrics import Metrics
from gateway.quotas.ledger import Ledger
from gateway.quotas.shared import SharedLedger
from gateway.quotas.windows import Instant
from gateway.relay import Relay
from gateway.requestlog import RequestLog
from gateway.routing import Balancer
from gateway.state import Network, State, accounts_of
from gateway.upstream import Pool, outside_name
from gateway.usage.journal import Journal
from wire.feed import FeedRoute, GatewayStatus

_RATE_WINDOW_S = 60
TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of the HTTP side."""

    max_body_bytes: int = 20 * 1024 * 1024
    cors_origins: tuple[str, ...] = ()
    access_log: bool = True
    metrics_apart: bool = False
    """/metrics is not served with the API."""
    redis_url: str = ""
    """Where all gateway processes count quotas together; empty: each by itself."""
    trusted_proxies: tuple[Network, ...] = ()
    """Whose `X-Forwarded-For` tells the client's address."""
    keepalive_s: float = 15.0
    """A stream that is quiet for so long gets a comment."""
    total_s: float = 3600.0
    """What a request may take from its first byte to its last."""
    queue_s: float = 30.0
    """How long a request waits when all engines of its model are full."""
    queue_length: int = 1000
    """How many wait for one model."""


class Throughput:
    """Requests and tokens of the last whole minute, by second."""

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque()

    def add(self, tokens: int, now: float) -> None:
        second = int(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
            self._expire(now)
        last = self._seconds[-1]
        last[1] += 1
        last[2] += tokens

    def per_minute(self, now: float) -> tuple[float, float]:
        """(requests, tokens)"""
        self._expire(now)
        return float(sum(item[1] for item in self._seconds)), float(sum(item[2] for item in self._seconds))

    def _expire(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] + _RATE_WINDOW_S < now:
            self._seconds.popleft()


class Ticked(Protocol):
    """What wants to be called about once a second."""

    def tick(self, now: float) -> None:
        """`now` is monotonic."""


class Service:
    """State in force, counters, and the parts that serve one request. Made once a process."""

    def __init__(
        self,
        pool: Pool,
        journal: Journal,
        metrics: Metrics,
        access_log: AccessLog,
        requests: Path,
        settings: Settings,
        *,
        retry_budget_s: float = 10.0,
    ) -> None:
        self.settings = settings
        self.pool = pool
        self.journal = journal
        self.metrics = metrics
        self.access_log = access_log
        self.request_log = RequestLog(requests, lambda: None if self.state is None else self.state.projects)
        metrics.requests_not_kept = lambda: self.request_log.dropped
        self.ledger = Ledger()
        self.quota: Ledger | SharedLedger = self.ledger
        """Decides: this process alone, or all of them."""
        self.guards = Guards()
        metrics.guards_passed_over = lambda: self.guards.passed_over
        self.balancer = Balancer()
        self.throughput = Throughput()
        self.active: set[Ticked] = set()
        """Requests that are being served."""
        metrics.in_flight = lambda: len(self.active)
        self.state: State | None = None
        self.feed: Feed | ChildFeed | None = None
        self._lost_at: dict[str, float] = {}
        self.turns = Turns(self._room, longest=settings.queue_length, most_s=settings.queue_s)
        metrics.waiting = lambda: len(self.turns)
        self.relay = Relay(
            pool, self.balancer, metrics, self._find_route, self._lost_at.get, self.turns, budget_s=retry_budget_s
        )

    async def run(self) -> None:
        """Look after the requests that are being served, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for exchange in list(self.active):
                exchange.tick(now)

    def share_quotas(self, redis_url: str) -> None:
        """Count over all processes. Raises ValueError for an address that is none."""
        shared = self.quota = SharedLedger(redis_url, self.ledger)
        self.metrics.shared_counters_up.set_function(lambda: float(shared.up))

    def attach(self, feed: Feed | ChildFeed) -> None:
        """Connect the feed with journal and state."""
        self.feed = feed
        feed.on_change = self.accept
        feed.on_ack = self.acknowledge
        feed.on_revoked = self.stop_serving
        feed.waiting = lambda: list(self.journal.waiting.values())
        self.journal.on_batch = feed.deliver
        self.journal.is_connected = lambda: feed.connected

    def accept(self, state: State, change: Change) -> None:
        """Put a new state in force: the next request sees it, a running one keeps what it was admitted by."""
        now = time.monotonic()
        for name, route in state.routes.items():
            if route.targets:
                self._lost_at.pop(name, None)
            elif self.state is not None and (old := self.state.routes.get(name)) is not None and old.targets:
                self._lost_at[name] = now
        self.state = state
        self.ledger.rebase(accounts_of(state, change.key_ids, change.project_ids))
        known = set(state.routable())
        known.update(outside_name(route) for route in state.routes.values() if route.provider is not None)
        self.pool.retain(known)
        self.balancer.forget(known)
        self.turns.changed()

    def stop_serving(self) -> None:
        """Refuse everything from now on."""
        self.state = None
        self.pool.retain(set())
        self.balancer.forget(())
        self.turns.changed()

    def acknowledge(self, batch_id: str) -> None:
        batch = self.journal.acknowledge(batch_id)
        if batch is not None:
            self.ledger.acknowledge(batch.rows, instant())

    def recover(self) -> None:
        """Take up unacknowledged usage of earlier processes."""
        self.journal.recover()
        for batch in self.journal.waiting.values():
            self.ledger.restore(batch.rows)

    def status(self) -> GatewayStatus:
        """What the master is told each second."""
        requests, tokens = self.throughput.per_minute(time.monotonic())
        return GatewayStatus(
            at=time.time(),
            routable=() if self.state is None else self.state.routable(),
            in_flight=dict(self.balancer.in_flight),
            requests_per_minute=requests,
            tokens_per_minute=tokens,
        )

    def metrics_text(self) -> bytes:
        """Exposition of all metrics, with the gauges as they are now."""
        metrics, feed = self.metrics, self.feed
        heard_at = feed.heard_at if feed is not None else None
        metrics.feed_connected.set(1 if feed is not None and feed.connected else 0)
        metrics.feed_age.set(-1 if heard_at is None else time.monotonic() - heard_at)
        metrics.journal_backlog.set(len(self.journal.waiting))
        return metrics.text()

    def _find_route(self, model: str) -> FeedRoute | None:
        return None if self.state is None else self.state.routes.get(model)

    def _room(self, route_id: str) -> int | None:
        """Requests that the instances of a route work on at once; None where one of them does not tell."""
        route = self._find_route(route_id)
        room = 0
        for target in route.targets if route is not None else ():
            if not target.slots:
                return None
            room += target.slots
        return room or None


def instant() -> Instant:
    return Instant(time.monotonic(), time.time())
