"""The links of this process together: what their servers report is written in batches, what they must know is watched.

A thousand links cost one query and one short transaction every half second. Both go on trying while the database is
away; links do not notice, and memory holds the newest report of each server, no more.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING, Any

import structlog
from channels.layers import get_channel_layer
from django.utils import timezone

from fleet import hints, services
from fleet.loops import DatabaseThread, Loop
from fleet.reports import ServerReport, store_server_reports

if TYPE_CHECKING:
    from fleet.link import AgentLink

log = structlog.get_logger(__name__)

WRITE_EVERY_S = 0.5
WATCH_EVERY_S = 0.5
RESEND_AFTER_S = 10.0


class Feed:
    """Owner of the loops that serve the links of this process. Used on one event loop only."""

    def __init__(self) -> None:
        self.links: dict[str, AgentLink] = {}
        self.auth_threads = DatabaseThread("link-auth", threads=4)
        self._pending: dict[str, ServerReport] = {}
        self._gone: dict[str, dt.datetime] = {}  # server -> connected_since of the link that went
        self._write_thread = DatabaseThread("feed-write")
        self._watch_thread = DatabaseThread("feed-watch")
        self._writer = Loop("feed.writer", self._write, interval_s=WRITE_EVERY_S, gather_s=0.1)
        self._watcher = Loop("feed.watcher", self._watch, interval_s=WATCH_EVERY_S)
        self._listener = Loop("feed.listener", self._listen, interval_s=3.0)
        self._orders: set[asyncio.Task[None]] = set()

    # -------------------------------------------------------------------------------------------- links

    def attach(self, link: AgentLink) -> AgentLink | None:
        """`link` speaks for its server from now on. Returns the one that did until now."""
        replaced = self.links.get(link.server_id)
        self.links[link.server_id] = link
        self._gone.pop(link.server_id, None)
        self._writer.ensure()
        self._watcher.ensure()
        self._listener.ensure()
        return replaced

    def look_soon(self) -> None:
        """A link waits for its state."""
        self._watcher.wake()

    def detach(self, link: AgentLink) -> None:
        """`link` is closed."""
        if self.links.get(link.server_id) is not link:
            return
        del self.links[link.server_id]
        self._gone[link.server_id] = link.connected_since
        self._writer.ensure()
        self._writer.wake()

    def report(self, report: ServerReport, *, soon: bool) -> None:
        """Have it written with the next batch; `soon`: it holds a change that others wait for."""
        known = self._pending.get(report.server_id)
        if known is None:
            self._pending[report.server_id] = report
        else:
            known.absorb(report)
        self._writer.ensure()
        if soon:
            self._writer.wake()

    # -------------------------------------------------------------------------------------------- writer

    async def _write(self) -> bool:
        batch, self._pending = self._pending, {}
        gone, self._gone = self._gone, {}
        try:
            if batch or gone:
                untold = await self._write_thread.run(_write_batch, list(batch.values()), gone)
                self._put_back({report.server_id: report for report in untold})
        except BaseException:
            self._put_back(batch)
            self._gone = {key: since for key, since in gone.items() if key not in self.links} | self._gone
            raise
        return bool(self.links or self._pending or self._gone)

    def _put_back(self, older: dict[str, ServerReport]) -> None:
        for server_id, report in older.items():
            newer = self._pending.get(server_id)
            if newer is not None:
                report.absorb(newer)
            self._pending[server_id] = report

    # -------------------------------------------------------------------------------------------- watcher

    async def _watch(self) -> bool:
        looked_at = dict(self.links)
        if looked_at:
            found = await self._watch_thread.run(services.standings, tuple(looked_at))
            await self._cut_off(looked_at, found)
            await self._send_newer({key: link for key, link in looked_at.items() if key in found}, found)
        return bool(self.links)

    async def _cut_off(self, links: dict[str, AgentLink], found: dict[str, services.Standing]) -> None:
        for server_id, link in links.items():
            standing = found.get(server_id)
            if standing is None or standing.revoked:
                await link.refuse_revoked()
            elif standing.connected_since == link.connected_since:
                link.recorded = True
            elif link.recorded and standing.connected_since and standing.connected_since > link.connected_since:
                # Before its own time was seen there, the row may hold one of before the clock was set back.
                await link.refuse_replaced()

    async def _send_newer(self, links: dict[str, AgentLink], found: dict[str, services.Standing]) -> None:
        behind = {key: link for key, link in links.items() if link.wants(found[key].generation)}
        if not behind:
            return
        envelopes = await self._watch_thread.run(services.sealed_states, tuple(behind), timezone.now())
        for server_id, link in behind.items():
            if server_id in envelopes:
                await link.send_desired(envelopes[server_id])

    # -------------------------------------------------------------------------------------------- hints and orders

    async def _listen(self) -> bool:
        """Hears hints and orders until the channel layer fails or no link is left."""
        layer = get_channel_layer()
        if layer is None or not self.links:
            return bool(self.links)
        async with hints.subscription(layer, hints.LINKS) as (_, messages):
            while self.links:
                message = await messages.next(timeout_s=5.0)
                if message is not None:
                    self._heard(message)
        return bool(self.links)

    def _heard(self, message: dict[str, Any]) -> None:
        link = self.links.get(message.get("server_id", ""))
        if link is None:
            return
        if message["type"] == "changed":
            self._watcher.wake()
        elif message["type"] == "order":
            task = asyncio.get_running_loop().create_task(_relay_order(link, message))
            self._orders.add(task)
            task.add_done_callback(self._orders.discard)


def _write_batch(batch: list[ServerReport], gone: dict[str, dt.datetime]) -> list[ServerReport]:
    untold = store_server_reports(batch) if batch else []
    for server_id, connected_since in gone.items():
        services.record_disconnect(server_id, connected_since)
    return untold


async def _relay_order(link: AgentLink, message: dict[str, Any]) -> None:
    """Give an order of another process to the agent, and its answer to the channel that waits."""
    try:
        tail = await link.tail_logs(message["instance_id"], message["lines"], message["timeout_s"])
    except services.AgentUnreachable as error:
        log.info("order.unanswered", server=link.server_id, reason=error.message)
        return
    answer = {"type": "log_tail", "nonce": tail.nonce, "lines": list(tail.lines), "error": tail.error}
    try:
        await asyncio.wait_for(get_channel_layer().send(message["reply_to"], answer), hints.SEND_TIMEOUT_S)
    except Exception as error:  # the channel layer is down: who asked has a timeout
        log.warning("order.answer_not_sent", server=link.server_id, error=repr(error))


feed = Feed()
"""The links of this process."""
