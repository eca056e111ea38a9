"""Guessing at join tokens is slowed down; joining with good ones is not."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle


class JoinThrottle(SimpleRateThrottle):
    """At most 20 refused joins a minute from one address; then 429 until they are a minute old."""

    scope = "join"
    rate = "20/min"

    def get_cache_key(self, request: Request, view: Any) -> str:
        return self.cache_format % {"scope": self.scope, "ident": self.get_ident(request)}

    def throttle_success(self) -> bool:
        return True  # only failures count

    @classmethod
    def count_failure(cls, request: Request, view: Any) -> None:
        """A join was refused."""
        throttle = cls()
        key = throttle.get_cache_key(request, view)
        moment = throttle.timer()
        recent = [at for at in throttle.cache.get(key, []) if at > moment - throttle.duration]
        throttle.cache.set(key, [moment, *recent], throttle.duration)
