"""The control loop: read a snapshot, plan purely, write in short fenced transactions. One leader at a time.

Every pass looks at the whole state, so that nothing depends on what an earlier pass or another process did.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from threading import Event as StopSignal

import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections, connection
from django.utils import timezone

from deployments import apply, following, leader, leases, planner, snapshot
from deployments.capacity import read_fleet
from deployments.leader import LostLeadership, Term
from deployments.models import Leader
from deployments.narrator import Narrator

log = structlog.get_logger(__name__)

TICK_S = 0.5
_RETRY_S = (0.5, 1.0, 2.0, 4.0)  # while the database is away
_TICKED_AT_EVERY_S = 5.0
_WRITE_SHARE = 0.3  # of a lease, for what a pass writes to instances, and again to desired states


@dataclass
class Leading:
    """What a leader knows beside the database; gone with its term."""

    term: Term
    memory: leases.Memory
    narrator: Narrator
    promised: dict[str, tuple[int, snapshot.Promised]] = field(default_factory=dict)  # server -> generation, what
    ticked_at: datetime | None = None
    followed_at: datetime | None = None  # last look at aliases


class Controller:
    """One candidate. `step` is one pass; it does nothing while another controller leads."""

    def __init__(self, holder: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.holder = holder or f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(4)}"
        self._clock = clock
        self._leading: Leading | None = None

    @property
    def leads(self) -> bool:
        return self._leading is not None

    def step(self, now: datetime) -> bool:
        """One pass; whether this controller led it. Database errors come through; leadership is judged anew then."""
        try:
            leading = self._hold_lease(now)
            if leading is None:
                return False
            _follow(leading, now)
            _decide(leading, now)
        except LostLeadership as error:
            log.warning("controller.lost_leadership", holder=self.holder, reason=str(error))
            self._leading = None
            return False
        return True

    def resign(self) -> None:
        """Give the lease back."""
        if self._leading is not None:
            leader.release(self._leading.term)
            log.info("controller.resigned", holder=self.holder)
            self._leading = None

    def _hold_lease(self, now: datetime) -> Leading | None:
        if self._leading is not None:
            self._leading.term = leader.renew(self._leading.term, now)
            return self._leading
        term = leader.acquire(self.holder, now, settings.LEADER_LEASE_S, self._clock)
        if term is None:
            return None
        log.info("controller.leads", holder=self.holder)
        narrator = Narrator.resume()
        open_loss = [server.id for server in snapshot.read_servers().values() if server.lost_since is not None]
        memory = leases.start(now.timestamp(), open_loss if narrator.mass_loss_open else ())
        self._leading = Leading(term, memory, narrator)
        return self._leading


def _follow(leading: Leading, now: datetime) -> None:
    """A look at the aliases now and then. It needs no fence: each revision is made under its deployment's lock."""
    if leading.followed_at is None or (now - leading.followed_at).total_seconds() >= following.EVERY_S:
        following.follow_aliases(now)
        leading.followed_at = now


def _decide(leading: Leading, now: datetime) -> None:
    servers = snapshot.read_servers()
    evicted = _judge_leases(leading, servers, now)
    instances = snapshot.read_instances()
    promised = apply.read_promised(leading.promised, servers)
    subjects = snapshot.read_subjects(instances, servers, evicted, promised, now)
    planned = planner.plan_rollouts((subject for _, subject in subjects), now.timestamp(), settings.DRAIN_TIMEOUT_S)
    fleet = read_fleet(now) if any(plan.creates for _, plan in planned) else planner.NO_FLEET
    holdings = snapshot.read_holdings() if any(plan.creates and plan.victim for _, plan in planned) else {}
    outcomes = planner.place_all(planned, fleet, holdings=holdings)
    changed = False
    until = leading.term.share_from_now(_WRITE_SHARE)
    for (deployment, subject), outcome in zip(subjects, outcomes, strict=True):
        if leading.term.clock() >= until:
            break  # the next pass goes on, with a lease renewed
        changed |= apply.apply_outcome(deployment, subject, outcome, leading.term, leading.narrator, now)
    if changed:
        instances = snapshot.read_instances()
    ahead = [(deployment, outcome.ahead) for (deployment, _), outcome in zip(subjects, outcomes, strict=True)]
    held = apply.read_held(servers, ahead)
    apply.sync_desired(instances, servers, promised, held, leading.term, _WRITE_SHARE, now)
    if leading.ticked_at is None or (now - leading.ticked_at).total_seconds() >= _TICKED_AT_EVERY_S:
        Leader.objects.filter(name=leader.NAME, holder=leading.term.holder).update(ticked_at=now)
        leading.ticked_at = now


def _judge_leases(leading: Leading, servers: dict[str, snapshot.ServerRow], now: datetime) -> frozenset[str]:
    """Evicted servers; marks who is lost or back, in the rows and in `servers`."""
    heard = [
        leases.Heard(server.id, server.last_seen, server.lost_since)
        for server in servers.values()
        if server.last_seen is not None and not server.revoked
    ]
    limits = leases.Limits(
        settings.LEASE_S, settings.EVICT_AFTER_S, settings.MASS_LOSS_WINDOW_S, settings.MASS_LOSS_SHARE
    )
    judged = leases.judge(heard, leading.memory, now.timestamp(), limits)
    apply.apply_leases(judged, servers, leading.term, leading.narrator, now)
    leading.memory = judged.memory
    return judged.evicted


def run_controller(stop: StopSignal, *, holder: str | None = None, tick_s: float = TICK_S) -> None:
    """Step every `tick_s` until `stop` is set, then give the lease back. Outages of the database are waited out."""
    controller = Controller(holder)
    failures = 0
    log.info("controller.started", holder=controller.holder)
    while not stop.is_set():
        began = time.monotonic()
        try:
            close_old_connections()
            controller.step(timezone.now())
            failures = 0
        except (DatabaseError, InterfaceError) as error:
            connection.close()
            log.warning("controller.database_unavailable", error=str(error), failures=failures + 1)
            failures += 1
        pause_s = _RETRY_S[min(failures, len(_RETRY_S)) - 1] if failures else tick_s
        stop.wait(max(0.05, pause_s - (time.monotonic() - began)) if not failures else pause_s)
    try:
        controller.resign()
    except (DatabaseError, InterfaceError) as error:
        log.warning("controller.lease_not_released", error=str(error))
    log.info("controller.stopped", holder=controller.holder)
