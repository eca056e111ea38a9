"""Who does something, as texts keep it."""

from __future__ import annotations

from rest_framework.request import Request

COMMAND_LINE = "command line"
_LONGEST = 150


def actor_of(request: Request) -> str:
    """The user's name, with the management key's when one was used: `ann (key ci)`. As long as rows keep it."""
    name = request.user.get_username()
    key = getattr(request.auth, "name", "")  # of apikeys, which this app does not know
    return (f"{name} (key {key})" if key else name)[:_LONGEST]
