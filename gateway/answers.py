"""Whole answers over ASGI, and the types of its calls."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from gateway.errors import GatewayError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")


async def send_answer(send: Send, status: int, body: bytes, headers: Sequence[Header]) -> None:
    length = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: GatewayError, headers: Sequence[Header]) -> None:
    """An error in OpenAI's shape, with Retry-After in whole seconds."""
    extra: list[Header] = [JSON, *headers, *error.headers]
    if error.retry_after_s is not None:
        extra.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    await send_answer(send, error.status, error.body(), extra)
