"""Whole answers, and errors in OpenAI's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.errors import GatewayError
from gateway.http.request import Header, Request

JSON: Header = (b"content-type", b"application/json")


def send_error(request: Request, error: GatewayError, headers: Sequence[Header], body: bytes | None = None) -> None:
    """An error in OpenAI's shape (or `body`), with Retry-After in whole seconds."""
    extra: list[Header] = [JSON, *headers, *error.headers]
    if error.retry_after_s is not None:
        extra.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    request.answer(error.status, extra, error.body() if body is None else body)
