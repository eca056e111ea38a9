"""The link to the master: says what is seen, hears what is wanted, comes back by itself."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import structlog

from agent.desired import Acceptance
from agent.errors import AgentError
from agent.join import MASTER_NAME, pinned_context
from wire.certs import load_signing_key
from wire.errors import WireError
from wire.join import NodeIdentity, reconnect_delay_s
from wire.messages import (
    AGENT_LINK_PATH,
    AgentMessage,
    Cache,
    Desired,
    Facts,
    Hello,
    Load,
    LogTail,
    MasterMessage,
    Metrics,
    Observed,
    Order,
    Refused,
    TailLogs,
    Welcome,
    decode_from_master,
    encode,
)
from wire.tokens import make_node_token

HEARTBEAT_S = 5.0
FACTS_EVERY_S = 30.0
PING_EVERY_S = 6.0
"""A peer that answers no ping for half of this is dead: noticed within 9 s."""
FINAL_PAUSE_S = 60.0
_MAX_MESSAGE_BYTES = 32 * 2**20
_STABLE_AFTER_S = 10.0
_CACHE_EVERY_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Voices:
    """What the link asks the rest of the agent."""

    facts: Callable[[], Awaitable[Facts]]
    load: Callable[[], Awaitable[Load]]
    observed: Callable[[], Observed]
    tail: Callable[[str, int], Awaitable[tuple[str, ...]]]
    accepted: Callable[[], None]
    """Called after a desired state was accepted."""
    cache: Callable[[], Cache | None]
    """What model files are here, when that is news. It reads the disk."""
    greeted: Callable[[], None]
    """Called when a master welcomed us: it knows nothing yet."""


class Link:
    """One websocket at a time. `changed` is set by whoever changes what `observed()` says."""

    def __init__(
        self,
        identity: NodeIdentity,
        acceptance: Acceptance,
        voices: Voices,
        changed: asyncio.Event,
        cache_changed: asyncio.Event,
    ) -> None:
        self._identity = identity
        self._acceptance = acceptance
        self._voices = voices
        self._changed = changed
        self._cache_changed = cache_changed
        self._hears_cache = asyncio.Event()
        self._key = load_signing_key(identity.signing_key_pem)
        self._context = pinned_context(identity.ca_pem)
        self._refused: Refused | None = None
        self._facts: Facts | None = None
        self._tails: set[asyncio.Task[None]] = set()
        self.connected = False

    def bearer(self) -> str:
        """A token that proves this node, good for a minute."""
        return make_node_token(self._key, self._identity.node_id, time.time())

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        attempt = 0
        timeout = aiohttp.ClientTimeout(total=None, connect=8, sock_connect=8)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                began, self._refused = time.monotonic(), None
                try:
                    await self._connect(session)
                    log.info("link.closed")
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    log.warning("link.failed", attempt=attempt, error=str(error) or type(error).__name__)
                except Exception:
                    log.exception("link.broken", attempt=attempt)  # a fault of ours: engines and relay go on
                finally:
                    self.connected = False
                if time.monotonic() - began > _STABLE_AFTER_S:
                    attempt = 0
                pause_s = reconnect_delay_s(attempt, random.random())  # noqa: S311 - jitter, no secret
                if self._refused is not None and self._refused.final:
                    pause_s = FINAL_PAUSE_S
                attempt += 1
                await asyncio.sleep(pause_s)

    async def _connect(self, session: aiohttp.ClientSession) -> None:
        url = self._identity.master_url.replace("https://", "wss://", 1) + AGENT_LINK_PATH
        async with session.ws_connect(
            url,
            ssl=self._context,
            server_hostname=MASTER_NAME,
            headers={"Authorization": f"Bearer {self.bearer()}"},
            heartbeat=PING_EVERY_S,
            max_msg_size=_MAX_MESSAGE_BYTES,
        ) as socket:
            self.connected = True
            self._hears_cache.clear()
            log.info("link.connected", master=self._identity.master_url)
            await self._say_hello(socket)
            async with asyncio.TaskGroup() as group:
                talking = group.create_task(self._talk(socket))
                telling = group.create_task(self._tell_facts(socket))
                counting = group.create_task(self._tell_cache(socket))
                try:
                    await self._listen(socket)
                finally:
                    for task in (talking, telling, counting, *self._tails):
                        task.cancel()

    async def _say_hello(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._facts = await self._voices.facts()
        await _send(socket, Hello(facts=self._facts, generation=self._acceptance.state.generation))

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Observed at once on each change and with each heartbeat."""
        heartbeat_at = 0.0
        while not socket.closed:
            self._changed.clear()
            try:
                await _send(socket, self._voices.observed())
                if time.monotonic() >= heartbeat_at:
                    heartbeat_at = time.monotonic() + HEARTBEAT_S
                    await _send(socket, Metrics(at=time.time(), load=await self._voices.load()))
            except (ConnectionError, aiohttp.ClientError):
                return  # the listener sees the same end
            try:
                async with asyncio.timeout(max(0.01, heartbeat_at - time.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _tell_facts(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """A new Hello when a runtime came or went."""
        while not socket.closed:
            await asyncio.sleep(FACTS_EVERY_S)
            if await self._voices.facts() != self._facts:
                try:
                    await self._say_hello(socket)
                except (ConnectionError, aiohttp.ClientError):
                    return

    async def _tell_cache(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Model files, on each change, to a master that hears of them."""
        await self._hears_cache.wait()
        while not socket.closed:
            self._cache_changed.clear()
            news = await asyncio.to_thread(self._voices.cache)
            try:
                if news is not None:
                    await _send(socket, news)
            except (ConnectionError, aiohttp.ClientError):
                return
            await asyncio.sleep(_CACHE_EVERY_S)
            await self._cache_changed.wait()

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in socket:
            if frame.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                continue
            try:
                self._hear(socket, decode_from_master(frame.data))
            except WireError as error:
                log.warning("link.message_refused", code=error.code, error=error.message)

    def _hear(self, socket: aiohttp.ClientWebSocketResponse, message: MasterMessage) -> None:
        match message:
            case Welcome():
                log.info("link.welcome", release=message.release, protocol=message.protocol)
                if "cache" in message.hears:
                    self._voices.greeted()
                    self._hears_cache.set()
            case Desired(envelope=envelope):
                if self._acceptance.offer(envelope, time.time()):
                    self._voices.accepted()
                self._changed.set()
            case Order(envelope=envelope):
                order = self._acceptance.order(envelope, time.time())
                task = asyncio.create_task(self._answer(socket, order))
                self._tails.add(task)
                task.add_done_callback(self._tails.discard)
            case Refused():
                self._refused = message
                log.error("link.refused", code=message.code, reason=message.message, remedy=message.remedy)

    async def _answer(self, socket: aiohttp.ClientWebSocketResponse, order: TailLogs) -> None:
        lines: tuple[str, ...] = ()
        error = ""
        try:
            lines = await self._voices.tail(order.instance_id, min(order.lines, 5000))
        except AgentError as failure:
            error = failure.message
        try:
            await _send(socket, LogTail(nonce=order.nonce, instance_id=order.instance_id, lines=lines, error=error))
        except (ConnectionError, aiohttp.ClientError) as failure:
            log.info("link.tail_not_sent", error=str(failure))


async def _send(socket: aiohttp.ClientWebSocketResponse, message: AgentMessage) -> None:
    await socket.send_str(encode(message))
