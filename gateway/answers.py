"""Whole answers, and errors in OpenAI's shape."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from gateway.errors import GatewayError
from gateway.http.request import Header, Request
from gateway.quotas.subjects import Rate

JSON: Header = (b"content-type", b"application/json")


def send_error(
    request: Request, error: GatewayError, headers: Sequence[Header], body: bytes | None = None, lines: bytes = b""
) -> None:
    """An error in OpenAI's shape (or `body`), with Retry-After in whole seconds; `lines` as for `Request.answer`."""
    extra: list[Header] = [JSON, *headers, *error.headers]
    if error.retry_after_s is not None:
        extra.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    request.answer(error.status, extra, error.body() if body is None else body, lines)


def rate_lines(of: bytes, rate: Rate) -> bytes:
    """The three x-ratelimit headers of one sort (requests, tokens), as OpenAI writes them."""
    limit, remaining, reset_s = rate
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % (
        of,
        limit,
        of,
        remaining,
        of,
        b"%dms" % int(reset_s * 1000) if reset_s < 1 else _span(int(reset_s)),
    )


@functools.lru_cache(maxsize=4096)
def _span(seconds: int) -> bytes:
    """A duration as OpenAI writes it in x-ratelimit-reset: 6m0s, 12s, 20ms."""
    minutes, rest = divmod(seconds, 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
