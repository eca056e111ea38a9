"""Hints to whoever holds a copy of keys or usage. They only make things faster: the rows say what is true."""

from django.dispatch import Signal

keys_changed = Signal()
"""A project or key was made, changed, revoked or removed. Sent after commit; `sender` is None, no arguments."""

usage_recorded = Signal()
"""A usage batch was counted. Sent after commit; `sender` is None, `key_ids` is a frozenset of key ids."""
