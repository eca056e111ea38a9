"""Versions that travel on the wire."""

from __future__ import annotations

RELEASE = "0.1.0"
"""Release of this source tree; master, agent and gateway of one tree share it."""

PROTOCOL = 1
"""Version of the message set in `wire.messages`. Raised when an older peer could misread a message."""

OLDEST_PROTOCOL = 1
"""Oldest peer protocol that this release still understands."""


def speaks(protocol: int) -> bool:
    """Whether a peer that announced `protocol` can be understood by this release."""
    return OLDEST_PROTOCOL <= protocol <= PROTOCOL
