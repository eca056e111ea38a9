"""Hints over the channel layer: they make things quicker, and nothing depends on one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import transaction

log = structlog.get_logger(__name__)

LINKS = "fleet.links"
"""Group of the processes that hold agents' links. Messages: `changed` (server_id), `order`."""
FEED = "gateway.feed"
"""Group of the processes that feed gateways. Messages: `changed`."""
SEND_TIMEOUT_S = 1.0


def hint_on_commit(group: str, message: dict[str, Any]) -> None:
    """Send `message` to `group` once the current transaction is committed; a failure is logged, nothing more."""
    transaction.on_commit(lambda: send_hint(group, message))


def send_hint(group: str, message: dict[str, Any]) -> None:
    """Send now, from synchronous code."""
    try:
        async_to_sync(asend_hint)(group, message)
    except RuntimeError as error:  # called on the event loop's own thread
        log.warning("hint.not_sent", group=group, error=str(error))


async def asend_hint(group: str, message: dict[str, Any]) -> bool:
    """Whether `message` went out."""
    layer = get_channel_layer()
    if layer is None:
        return False
    try:
        await asyncio.wait_for(layer.group_send(group, message), SEND_TIMEOUT_S)
    except Exception as error:  # redis and the socket below have many; a hint may be lost
        log.warning("hint.not_sent", group=group, error=repr(error))
        return False
    return True


class Subscription:
    """Messages of one group, as they come."""

    def __init__(self, layer: Any, channel: str) -> None:
        self._layer = layer
        self._channel = channel
        self._receiving = self._receive()

    async def next(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None when none came in time. A receive is never cancelled: that ends a subscription."""
        done, _ = await asyncio.wait({self._receiving}, timeout=timeout_s)
        if not done:
            return None
        message: dict[str, Any] = self._receiving.result()
        self._receiving = self._receive()
        return message

    async def end(self) -> None:
        """Give the channel back."""
        await asyncio.sleep(0)  # a receive that has not begun would not clean up
        self._receiving.cancel()
        await asyncio.wait({self._receiving}, timeout=SEND_TIMEOUT_S)

    def _receive(self) -> asyncio.Future[dict[str, Any]]:
        return asyncio.ensure_future(self._layer.receive(self._channel))


@asynccontextmanager
async def subscription(layer: Any, group: str | None = None) -> AsyncIterator[tuple[str, Subscription]]:
    """A channel of one's own, in `group` if given: its name and its messages. Raises what the layer raises."""
    channel: str = await asyncio.wait_for(layer.new_channel(), SEND_TIMEOUT_S)
    messages = Subscription(layer, channel)
    try:
        if group is not None:
            await asyncio.wait_for(layer.group_add(group, channel), SEND_TIMEOUT_S)
        yield channel, messages
    finally:
        try:
            if group is not None:
                await asyncio.wait_for(layer.group_discard(group, channel), SEND_TIMEOUT_S)
        except Exception as error:  # the layer is down: nothing is subscribed any more
            log.info("hint.group_not_left", group=group, error=repr(error))
        await messages.end()
