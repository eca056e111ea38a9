"""The link to the master: state comes in, status and usage go out. Serving never waits for it.

The last state is kept on disk and used at start, so a gateway works for as long as the master is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import msgspec
import structlog

from gateway.home import Home, StoredState
from gateway.state import State, apply_delta, from_snapshot, to_snapshot
from wire import certs
from wire.errors import BadMessage
from wire.feed import (
    GATEWAY_LINK_PATH,
    FeedDelta,
    FeedSnapshot,
    GatewayHello,
    GatewayStatus,
    UsageAck,
    UsageBatch,
    decode_feed,
)
from wire.join import NodeIdentity, reconnect_delay_s
from wire.messages import Refused, encode
from wire.tokens import make_node_token

log = structlog.get_logger(__name__)

MASTER_NAME = "master.stokehold.internal"
"""Name that the master's certificate must carry, whatever its address: no agent's certificate does."""
STATUS_S = 1.0
SAVE_S = 1.0
_REFUSED_PAUSE_S = 60.0
_REVOKED = "revoked"  # code of a Refused: an operator took this gateway out
_HEARTBEAT_S = 5.0
_RESEND_S = 10.0
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=10)
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Change:
    """What a message changed; None: everything."""

    key_ids: tuple[str, ...] | None
    project_ids: tuple[str, ...] | None


class Refusal(Exception):
    """The master does not want this gateway."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused


class Feed:
    """Holder of the state, owner of the link. `run` is its one task."""

    def __init__(
        self,
        home: Home,
        identity: NodeIdentity,
        tls: ssl.SSLContext,
        *,
        host_id: str,
        base_url: str,
        status: Callable[[], GatewayStatus],
    ) -> None:
        self._home = home
        self._identity = identity
        self._key = certs.load_signing_key(identity.signing_key_pem)
        self._tls = tls
        self._hello = GatewayHello(host_id=host_id, base_url=base_url)
        self._status = status
        self.state: State | None = None
        """None until a state came from the master or from disk."""
        self.connected = False
        """The link is up and its snapshot is in force."""
        self.heard_at: float | None = None  # monotonic
        self.on_change: Callable[[State, Change], None] = lambda state, change: None
        self.on_message: Callable[[FeedSnapshot | FeedDelta], None] = lambda message: None
        """As it came, after it is in force."""
        self.on_link: Callable[[], None] = lambda: None
        """`connected` has changed."""
        self.on_ack: Callable[[str], None] = lambda batch_id: None
        self.on_revoked: Callable[[], None] = lambda: None
        self.waiting: Callable[[], list[UsageBatch]] = list
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._send_now = asyncio.Event()
        self._unsent: list[UsageBatch] = []
        self._unsaved = asyncio.Event()
        self._disk = asyncio.Lock()  # a save under way must not outlive the order to forget

    def load(self) -> None:
        """Start from the state on disk. A damaged file is as good as none."""
        try:
            stored = self._home.state()
            if stored is None:
                return
            self.state = from_snapshot(stored.snapshot, stored.saved_at)
        except (msgspec.DecodeError, ValueError, OSError) as error:
            log.error("feed.state_unreadable", error=str(error), remedy="It comes again from the master.")
            return
        log.info("feed.state_loaded", age_s=round(time.time() - stored.saved_at, 1), routes=len(self.state.routes))
        self.on_change(self.state, Change(None, None))

    def deliver(self, batch: UsageBatch) -> None:
        """Send a new batch over the link; when it is down, the next connect sends all that wait."""
        self._unsent.append(batch)
        self._send_now.set()

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        saver = asyncio.create_task(self._save_changes())
        attempt = 0
        try:
            while True:
                final = False
                try:
                    await self._connection()
                except Refusal as error:
                    refused = error.refused
                    log.error("feed.refused", code=refused.code, message=refused.message, remedy=refused.remedy)
                    final = refused.final
                    if refused.code == _REVOKED:
                        await self._forget()
                except (aiohttp.ClientError, OSError, TimeoutError, BadMessage, ValueError) as error:
                    log.warning("feed.down", error=str(error) or type(error).__name__, attempt=attempt)
                attempt = 0 if self.connected else attempt
                if self.connected:
                    self.connected = False
                    self.on_link()
                jittered_s = reconnect_delay_s(attempt, random.random())  # noqa: S311 - jitter
                await asyncio.sleep(_REFUSED_PAUSE_S if final else jittered_s)
                attempt += 1
        finally:
            saver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await saver
            await self._save()

    async def _forget(self) -> None:
        """A revoked gateway serves no more: its keys and routes are not its own any longer, on disk neither."""
        self.state = None
        self.on_revoked()
        async with self._disk:
            self._unsaved.clear()
            self._home.drop_state()

    async def _connection(self) -> None:
        """One connection, from connect to its end."""
        token = make_node_token(self._key, self._identity.node_id, time.time())
        connector = aiohttp.TCPConnector(ssl=self._tls)
        async with (
            aiohttp.ClientSession(connector=connector, trust_env=False, timeout=_TIMEOUT) as session,
            session.ws_connect(
                self._identity.master_url.rstrip("/") + GATEWAY_LINK_PATH,
                headers={"Authorization": f"Bearer {token}"},
                server_hostname=MASTER_NAME,
                heartbeat=_HEARTBEAT_S,
                max_msg_size=_MAX_MESSAGE_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            ) as socket,
        ):
            self._socket = socket
            await socket.send_str(encode(self._hello))
            sender = asyncio.create_task(self._send(socket))
            try:
                await self._receive(socket)
            finally:
                self._socket = None
                sender.cancel()
                with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError, OSError):
                    await sender

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            message = decode_feed(frame.data)
            self.heard_at = time.monotonic()
            if isinstance(message, FeedSnapshot):
                self._accept(from_snapshot(message, time.time()), Change(None, None))
                self.on_message(message)
                if not self.connected:
                    self.connected = True
                    self.on_link()
                    log.info("feed.up", keys=len(message.keys), routes=len(message.routes))
            elif isinstance(message, FeedDelta) and self.state is not None and self.connected:
                changed = Change(tuple(key.id for key in message.keys), tuple(item.id for item in message.projects))
                self._accept(apply_delta(self.state, message, time.time()), changed)
                self.on_message(message)
            elif isinstance(message, UsageAck):
                self.on_ack(message.batch_id)
            elif isinstance(message, Refused):
                raise Refusal(message)

    def _accept(self, state: State, change: Change) -> None:
        before = self.state.routable() if self.state is not None else ()
        self.state = state
        self.on_change(state, change)
        self._unsaved.set()
        if state.routable() != before:
            self._send_now.set()  # the controller waits for this to stop an instance

    async def _send(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Status each second and after a change of targets; batches as they come, all that wait now and then."""
        resend_at = 0.0
        while True:
            if time.monotonic() >= resend_at:
                self._unsent = self.waiting()
                resend_at = time.monotonic() + _RESEND_S
            self._send_now.clear()
            await socket.send_str(encode(self._status()))
            while self._unsent:
                await socket.send_str(encode(self._unsent.pop(0)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._send_now.wait(), STATUS_S)

    async def _save_changes(self) -> None:
        """Write the state to disk, at most once a second."""
        while True:
            await self._unsaved.wait()
            await self._save()
            await asyncio.sleep(SAVE_S)

    async def _save(self) -> None:
        if not self._unsaved.is_set():
            return
        async with self._disk:
            self._unsaved.clear()
            if self.state is None:
                return
            stored = StoredState(saved_at=time.time(), snapshot=to_snapshot(self.state))
            try:
                await asyncio.to_thread(self._home.save_state, stored)
            except OSError as error:
                self._unsaved.set()
                log.error("feed.state_not_saved", error=str(error), remedy="Free space on the gateway's disk.")
