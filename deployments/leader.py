"""Which controller decides: a lease in one row, taken and kept by conditional updates, so that there is never a second.

Clocks of machines that run a controller must agree within a second (NTP). A holder that cannot renew stops by its own
monotonic clock before the lease ends in the row.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """`decide_until` is on the monotonic clock."""

    holder: str
    lease_s: float
    decide_until: float


def acquire(holder: str, now: datetime, monotonic: float, lease_s: float) -> Term | None:
    """Take the lease if it is free or ran out; None: another holds it."""
    Leader.objects.get_or_create(name=NAME)
    free = Q(holder="") | Q(holder=holder) | Q(expires_at__isnull=True) | Q(expires_at__lt=now)
    taken = Leader.objects.filter(free, name=NAME).update(
        holder=holder, since=now, renewed_at=now, expires_at=now + timedelta(seconds=lease_s)
    )
    return Term(holder, lease_s, monotonic + lease_s - MARGIN_S) if taken else None


def renew(term: Term, now: datetime, monotonic: float) -> Term:
    """A longer term. Raises LostLeadership when the row says otherwise."""
    kept = _mine(term, now).update(renewed_at=now, expires_at=now + timedelta(seconds=term.lease_s))
    if not kept:
        raise LostLeadership("the lease ran out or was taken by another controller")
    return Term(term.holder, term.lease_s, monotonic + term.lease_s - MARGIN_S)


def fence(term: Term, now: datetime, monotonic: float) -> None:
    """Call first inside each transaction that decides. Raises LostLeadership.

    It is an update, so it locks the row: a takeover waits for the transaction or the transaction sees the takeover.
    """
    if monotonic >= term.decide_until or not _mine(term, now).update(name=NAME):
        raise LostLeadership("the lease ran out or was taken by another controller")


def release(term: Term) -> None:
    """Let go at once, so that another need not wait for the lease to end."""
    Leader.objects.filter(name=NAME, holder=term.holder).update(holder="", expires_at=None)


def _mine(term: Term, now: datetime):
    return Leader.objects.filter(name=NAME, holder=term.holder, expires_at__gt=now)
