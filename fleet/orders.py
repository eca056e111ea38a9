"""One-off orders to an agent: few, typed, signed, and without a shell."""

from __future__ import annotations

import asyncio

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

from fleet import hints
from fleet.errors import AgentUnreachable
from fleet.feed import feed
from wire.messages import LogTail

MAX_LINES = 2000
_LAYER_DOWN = "the agent cannot be asked: the channel layer (Redis) does not answer"


async def tail_logs(server_id: str, instance_id: str, lines: int = 200, timeout_s: float = 5.0) -> LogTail:
    """Last lines of an instance's output, from its agent; through whichever process holds that link.

    Raises:
        AgentUnreachable: it is not connected, or gave no answer in time.
    """
    lines = max(1, min(lines, MAX_LINES))
    link = feed.links.get(server_id)
    if link is not None and link.loop is asyncio.get_running_loop():
        return await link.tail_logs(instance_id, lines, timeout_s)
    return await _through_the_layer(server_id, instance_id, lines, timeout_s)


def tail_logs_sync(server_id: str, instance_id: str, lines: int = 200, timeout_s: float = 5.0) -> LogTail:
    """`tail_logs` for synchronous code."""
    return async_to_sync(tail_logs)(server_id, instance_id, lines, timeout_s)


async def _through_the_layer(server_id: str, instance_id: str, lines: int, timeout_s: float) -> LogTail:
    layer = get_channel_layer()
    order = {
        "type": "order",
        "server_id": server_id,
        "instance_id": instance_id,
        "lines": lines,
        "timeout_s": timeout_s,
    }
    try:
        async with hints.subscription(layer) as (channel, messages):
            if not await hints.asend_hint(hints.LINKS, order | {"reply_to": channel}):
                raise AgentUnreachable(_LAYER_DOWN)
            answer = await messages.next(timeout_s)
    except AgentUnreachable:
        raise
    except Exception as error:  # redis and the socket below have many
        raise AgentUnreachable(_LAYER_DOWN) from error
    if answer is None:
        raise AgentUnreachable(f"the agent of {server_id} did not answer within {timeout_s:g} s")
    return LogTail(nonce=answer["nonce"], instance_id=instance_id, lines=tuple(answer["lines"]), error=answer["error"])
