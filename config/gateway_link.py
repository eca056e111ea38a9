"""The link of one gateway: `/link/gateway` on the master's TLS port.

The master sends what the gateway must know (`gateway_feed`), the gateway says what it still sends where, and delivers
usage. With the database away the link stays: nothing new is sent, status is kept (the newest), usage is not
acknowledged, so the gateway delivers it again.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import structlog
from channels.layers import get_channel_layer
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from apikeys.signals import keys_changed
from apikeys.usage import record_batch
from config.gateway_feed import LOOK_EVERY_S, FeedBuilder, FeedState, Look, difference
from fleet import hints
from fleet.link import NodeLink
from fleet.loops import DatabaseThread, Loop
from fleet.models import GatewayState, Role
from fleet.reports import GatewayReport, store_gateway_reports
from wire.errors import BadMessage
from wire.feed import GatewayHello, GatewayStatus, UsageAck, UsageBatch, decode_from_gateway
from wire.messages import encode
from wire.versions import speaks

log = structlog.get_logger(__name__)

MAX_WAITING_BATCHES = 64
BATCH_PAUSE_S = 1.0


class GatewayLinks:
    """Owner of the loops that serve the gateways' links of this process."""

    def __init__(self) -> None:
        self.links: dict[str, GatewayLink] = {}
        self.usage_thread = DatabaseThread("usage")
        self._pending: dict[str, GatewayReport] = {}
        self._gone: dict[str, dt.datetime] = {}
        self._keys_changed = True
        self._builder = FeedBuilder()
        self._look_thread = DatabaseThread("gateway-feed")
        self._write_thread = DatabaseThread("gateway-write")
        self._looker = Loop("gateway.feed", self._look, interval_s=LOOK_EVERY_S)
        self._writer = Loop("gateway.writer", self._write, interval_s=0.5)
        self._listener = Loop("gateway.listener", self._listen, interval_s=3.0)

    def attach(self, link: GatewayLink) -> GatewayLink | None:
        """Feed `link` from now on. Returns the link that its gateway had until now."""
        replaced = self.links.get(link.node_id)
        self.links[link.node_id] = link
        self._gone.pop(link.node_id, None)
        for loop in (self._looker, self._writer, self._listener):
            loop.ensure()
        self._looker.wake()
        return replaced

    def detach(self, link: GatewayLink) -> None:
        if self.links.get(link.node_id) is link:
            del self.links[link.node_id]
            self._gone[link.node_id] = link.connected_since
            self._writer.ensure()
            self._writer.wake()

    def report(self, report: GatewayReport) -> None:
        """Have it written with the next batch."""
        known = self._pending.setdefault(report.gateway_id, report)
        if known is not report:
            known.absorb(report)

    def look_soon(self, *, keys: bool) -> None:
        """Something changed."""
        self._keys_changed |= keys
        self._looker.wake()

    async def _look(self) -> bool:
        asked = dict(self.links)
        if not asked:
            return False
        keys, self._keys_changed = self._keys_changed, False
        try:
            look: Look = await self._look_thread.run(self._builder.look, tuple(asked), keys)
        except BaseException:
            self._keys_changed = True
            raise
        for gateway_id, link in asked.items():
            if gateway_id in look.revoked:
                await link.refuse_revoked()
            else:
                await link.feed(look)
        return bool(self.links)

    async def _write(self) -> bool:
        batch, self._pending = self._pending, {}
        gone, self._gone = self._gone, {}
        try:
            if batch or gone:
                await self._write_thread.run(_write_batch, list(batch.values()), gone)
        except BaseException:
            for gateway_id, report in batch.items():
                newer = self._pending.get(gateway_id)
                if newer is not None:
                    report.absorb(newer)
                self._pending[gateway_id] = report
            self._gone = {key: since for key, since in gone.items() if key not in self.links} | self._gone
            raise
        return bool(self.links or self._pending or self._gone)

    async def _listen(self) -> bool:
        """Hears hints until the channel layer fails or no link is left."""
        layer = get_channel_layer()
        if layer is None or not self.links:
            return bool(self.links)
        async with hints.subscription(layer, hints.FEED) as (_, messages):
            while self.links:
                if await messages.next(timeout_s=5.0) is not None:
                    self.look_soon(keys=True)
        return bool(self.links)


def _write_batch(batch: list[GatewayReport], gone: dict[str, dt.datetime]) -> None:
    store_gateway_reports(batch)
    for gateway_id, since in gone.items():
        GatewayState.objects.filter(gateway_id=gateway_id, connected_since=since).update(connected_since=None)


links = GatewayLinks()
"""The gateways' links of this process."""


def _hint_keys_changed(**_: Any) -> None:
    hints.send_hint(hints.FEED, {"type": "changed"})


keys_changed.connect(_hint_keys_changed, dispatch_uid="gateway-feed")


class GatewayLink(NodeLink):
    """`/link/gateway`"""

    role = Role.GATEWAY

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connected_since = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._sent: FeedState | None = None
        self._batches: asyncio.Queue[UsageBatch] = asyncio.Queue(MAX_WAITING_BATCHES)
        self._accountant: asyncio.Task[None] | None = None

    async def opened(self) -> None:
        self.connected_since = timezone.now()
        self._accountant = asyncio.get_running_loop().create_task(self._account())
        self._accountant.add_done_callback(_log_failure)
        replaced = links.attach(self)
        if replaced is not None:
            await replaced.refuse_replaced()
        links.report(GatewayReport(self.node_id, self.connected_since, connected_since=self.connected_since))
        log.info("gateway.connected", gateway=self.node_id)

    async def feed(self, look: Look) -> None:
        """Bring the gateway to `look.state`: by a snapshot at first, then by what changed."""
        if self.closed or self._sent is look.state:
            return
        known, self._sent = self._sent, look.state
        if known is None:
            await self.send(encode(look.state.snapshot()))
            return
        delta = look.delta if known is look.base else difference(known, look.state)
        if delta is not None:
            await self.send(encode(delta))

    async def heard(self, data: str | bytes) -> None:
        message = decode_from_gateway(data)
        if isinstance(message, GatewayHello):
            if not speaks(message.protocol):
                await self.refuse_protocol(message.protocol)
                return
            links.report(GatewayReport(self.node_id, timezone.now(), hello=message))
        elif isinstance(message, GatewayStatus):
            links.report(GatewayReport(self.node_id, timezone.now(), status=message))
        else:
            self._take(message)

    def _take(self, batch: UsageBatch) -> None:
        if len(batch.batch_id) > 80 or not batch.batch_id:
            raise BadMessage("a usage batch must have an id of 1 to 80 characters")
        self._again(batch)

    def _again(self, batch: UsageBatch) -> None:
        try:
            self._batches.put_nowait(batch)
        except asyncio.QueueFull:  # not acknowledged, so it comes again
            log.warning("usage.batch_put_off", gateway=self.node_id, batch=batch.batch_id)

    async def _account(self) -> None:
        """Count batches one after the other, and acknowledge what is committed."""
        while True:
            batch = await self._batches.get()
            if not await self._count(batch):
                self._again(batch)
                await asyncio.sleep(BATCH_PAUSE_S)
                continue
            await self.send(encode(UsageAck(batch_id=batch.batch_id)))
            links.look_soon(keys=True)

    async def _count(self, batch: UsageBatch) -> bool:
        """Whether it may be acknowledged."""
        try:
            await links.usage_thread.run(record_batch, batch, timezone.now())
        except (DatabaseError, InterfaceError, OSError) as error:
            log.warning("usage.batch_not_counted", gateway=self.node_id, batch=batch.batch_id, error=repr(error))
            return False
        except Exception:  # it stays with the gateway and is offered again; others must not wait for it
            log.exception("usage.batch_failed", gateway=self.node_id, batch=batch.batch_id)
            return False
        return True

    async def disconnect(self, code: int) -> None:
        if self._accountant is not None:
            self._accountant.cancel()
            await asyncio.wait({self._accountant})
        if self.node_id:
            links.detach(self)
            log.info("gateway.disconnected", gateway=self.node_id, code=code)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("usage.accountant_failed", exc_info=task.exception())
