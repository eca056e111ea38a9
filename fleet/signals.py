"""What other apps may listen to."""

from django.dispatch import Signal

server_observed = Signal()
"""Sent after a server's observed state was stored: `server_id`, `observed` (wire Observed), `now`.

Sent when it changed and with each heartbeat, from the writer's thread, outside of any transaction.
"""
