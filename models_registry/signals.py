"""What other apps may listen to."""

from django.dispatch import Signal

store_damaged = Signal()
"""Sent when a copy of a version is damaged and could not be repaired: `copy` (VersionCopy, what is wrong in `problem`),
`now`. Sent again with each try."""
