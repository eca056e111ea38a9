"""Which controller decides: a lease in one row, taken and kept by conditional updates, so that there is never a second.

Clocks of machines that run a controller must agree within a second (NTP). A holder that cannot renew stops by its own
monotonic clock before the lease ends in the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db.models import Q

from deployments.models import Leader

NAME = "controller"
MARGIN_S = 1.0  # stop deciding this long before the lease ends


class LostLeadership(Exception):
    """The lease is another's, or ran out: nothing may be written."""

    code = "lost_leadership"
    remedy = "Nothing to do: the controller that holds the lease decides."


@dataclass(frozen=True)
class Term:
    """`decide_until` is a time of `clock`, which is monotonic."""

    holder: str
    lease_s: float
    decide_until: float
    clock: Callable[[], float]

    def may_decide(self) -> bool:
        return self.clock() < self.decide_until

    def share_from_now(self, share: float) -> float:
        """Time of `clock` when so much of a lease will have gone from now."""
        return self.clock() + share * self.lease_s


def acquire(holder: str, now: datetime, lease_s: float, clock: Callable[[], float]) -> Term | None:
    """Take the lease if it is free or ran out; None: another holds it."""
    asked_at = clock()
    Leader.objects.get_or_create(name=NAME)
    free = Q(holder="") | Q(holder=holder) | Q(expires_at__isnull=True) | Q(expires_at__lt=now)
    taken = Leader.objects.filter(free, name=NAME).update(
        holder=holder, since=now, renewed_at=now, expires_at=now + timedelta(seconds=lease_s)
    )
    return Term(holder, lease_s, asked_at + lease_s - MARGIN_S, clock) if taken else None


def renew(term: Term, now: datetime) -> Term:
    """A longer term. Raises LostLeadership when the row says otherwise."""
    asked_at = term.clock()
    kept = term.may_decide() and _mine(term, now).update(
        renewed_at=now, expires_at=now + timedelta(seconds=term.lease_s)
    )
    if not kept:
        raise LostLeadership("the lease ran out or was taken by another controller")
    return replace(term, decide_until=asked_at + term.lease_s - MARGIN_S)


def fence(term: Term, now: datetime) -> None:
    """Call first inside each transaction that decides. Raises LostLeadership.

    It is an update, so it locks the row: a takeover waits for the transaction or the transaction sees the takeover.
    """
    if not term.may_decide() or not _mine(term, now).update(name=NAME):
        raise LostLeadership("the lease ran out or was taken by another controller")


def release(term: Term) -> None:
    """Let go at once, so that another need not wait for the lease to end."""
    Leader.objects.filter(name=NAME, holder=term.holder).update(holder="", expires_at=None)


def _mine(term: Term, now: datetime):
    return Leader.objects.filter(name=NAME, holder=term.holder, expires_at__gt=now)
