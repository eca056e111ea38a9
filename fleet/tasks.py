"""What the fleet does now and then."""

from __future__ import annotations

import datetime as dt

from celery import shared_task
from django.db.models import Q
from django.utils import timezone

from fleet.models import JoinToken

KEEP_TOKENS = dt.timedelta(days=30)


@shared_task(name="fleet.prune_join_tokens")
def prune_join_tokens() -> int:
    """Delete join tokens that were used or expired a month ago. Returns how many."""
    before = timezone.now() - KEEP_TOKENS
    return JoinToken.objects.filter(Q(used_at__lt=before) | Q(expires_at__lt=before)).delete()[0]


BEAT = {
    "fleet.prune_join_tokens": {"task": "fleet.prune_join_tokens", "schedule": 6 * 3600.0},
}
