"""The parent of many gateway processes: holds the link to the master, starts children, and hands on what they say."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from gateway.family import MAX_LINE_BYTES, ChildHello, LinkState, adopt_journals, line, read_up, socket_path
from gateway.feed import Feed
from gateway.home import Home, own_host_id
from gateway.server import DRAIN_S, Listen, base_url, bind
from gateway.state import to_snapshot
from gateway.usage.journal import Journal
from wire.errors import BadMessage
from wire.feed import FeedDelta, FeedSnapshot, GatewayStatus, UsageAck, UsageBatch
from wire.join import NodeIdentity

log = structlog.get_logger(__name__)

_STARTS_WITHIN_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_LIVES_S = 10.0
"""A child that lived this long did not die of its start."""


@dataclass(eq=False)
class _Child:
    number: int
    process: asyncio.subprocess.Process
    started_at: float
    ready: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Talk:
    """A child that is connected; one of an earlier parent is a guest."""

    pid: int
    writer: asyncio.StreamWriter
    status: GatewayStatus | None = None
    batches: set[str] = field(default_factory=set)


class Parent:
    """Runs `count` children with these arguments (`python -m gateway run ... --child N`)."""

    def __init__(
        self, home: Home, identity: NodeIdentity, listen: Listen, count: int, arguments: Sequence[str]
    ) -> None:
        self._home = home
        self._identity = identity
        self._listen = listen
        self._count = count
        self._arguments = tuple(arguments)
        self._children: dict[int, _Child] = {}
        self._talks: dict[int, _Talk] = {}
        self._left = Journal(home.journal)  # what children that are gone have not delivered
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._feed = Feed(
            home,
            identity,
            home.tls_context(identity),
            host_id=own_host_id(),
            base_url=base_url(listen, listen.port),
            status=self._status,
        )

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; SIGHUP replaces the children one by one. Raises PortInUse."""
        bind(self._listen.host, self._listen.port, reuse_port=True).close()
        feed = self._feed
        feed.on_message = self._hand_down
        feed.on_link = lambda: self._tell_all(LinkState(connected=feed.connected))
        feed.on_ack = self._acknowledged
        feed.on_revoked = lambda: self._tell_all(LinkState(connected=False, revoked=True))
        feed.waiting = lambda: list(self._left.waiting.values())
        adopt_journals(self._home)
        self._left.recover()
        feed.load()
        path = socket_path(self._home)
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._talk, str(path), limit=MAX_LINE_BYTES)
        path.chmod(0o600)
        loop = asyncio.get_running_loop()
        for ending in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(ending, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._own(self._replace_all()))
        link = asyncio.create_task(feed.run())
        log.info("gateway.family", processes=self._count, port=self._listen.port)
        try:
            for number in range(self._count):
                await self._start(number)
            self._own(self._send_guests_away())
            await self._stop.wait()
        finally:
            await self._end()
            self._adopt()
            for task in (link, *self._tasks):
                task.cancel()
            await asyncio.gather(link, *self._tasks, return_exceptions=True)
            server.close()
            path.unlink(missing_ok=True)

    # ---------------------------------------------------------------------------------------- children

    async def _start(self, number: int, pause_s: float = _FIRST_PAUSE_S) -> _Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "run", *self._arguments, "--child", str(number)
        )
        child = self._children[number] = _Child(number, process, time.monotonic())
        self._own(self._watch(child, pause_s))
        return child

    async def _watch(self, child: _Child, pause_s: float) -> None:
        """Wait for its end; start another in its place when it was not to end, later each time it dies young."""
        code = await child.process.wait()
        self._adopt()
        if self._stop.is_set() or self._children.get(child.number) is not child:
            return
        lived_s = time.monotonic() - child.started_at
        log.warning("gateway.child_died", child=child.number, code=code, lived_s=round(lived_s, 1))
        if lived_s >= _LIVES_S:
            pause_s = _FIRST_PAUSE_S
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), pause_s)
        if not self._stop.is_set() and self._children.get(child.number) is child:
            await self._start(child.number, min(_LONGEST_PAUSE_S, pause_s * 2))

    async def _replace_all(self) -> None:
        """A new child in each place; the old one drains once the new one serves. No connection is refused."""
        for number in range(self._count):
            old = self._children.get(number)
            new = await self._start(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(new.ready.wait(), _STARTS_WITHIN_S)
            if old is not None and old.process.returncode is None:
                old.process.terminate()
        log.info("gateway.children_replaced", processes=self._count)

    async def _send_guests_away(self) -> None:
        """Children of a parent before us have served until ours do."""
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < deadline:
            starting = [child for child in self._children.values() if not child.ready.is_set()]
            if not starting:
                break
            with contextlib.suppress(TimeoutError):  # it may be replaced, or die, before it is ready
                await asyncio.wait_for(starting[0].ready.wait(), 1.0)
        own = {child.process.pid for child in self._children.values()}
        for talk in [talk for pid, talk in self._talks.items() if pid not in own]:
            talk.writer.write(line(LinkState(connected=self._feed.connected, leave=True)))

    async def _end(self) -> None:
        running = [child for child in self._children.values() if child.process.returncode is None]
        for child in running:
            child.process.terminate()
        ends = [asyncio.create_task(child.process.wait()) for child in running]
        if ends:
            await asyncio.wait(ends, timeout=DRAIN_S + 10)
        for child in running:
            if child.process.returncode is None:
                child.process.kill()

    def _adopt(self) -> None:
        if adopt_journals(self._home):
            known = set(self._left.waiting)
            self._left.recover()
            for batch_id in set(self._left.waiting) - known:
                self._feed.deliver(self._left.waiting[batch_id])

    # ---------------------------------------------------------------------------------------- talk

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk: _Talk | None = None
        try:
            hello = read_up(await reader.readline())
            if not isinstance(hello, ChildHello):
                return
            talk = self._talks[hello.pid] = _Talk(hello.pid, writer)
            if self._feed.state is not None:
                writer.write(line(to_snapshot(self._feed.state)))
            writer.write(line(LinkState(connected=self._feed.connected)))
            for child in self._children.values():
                if child.process.pid == hello.pid:
                    child.ready.set()
            while data := await reader.readline():
                message = read_up(data)
                if isinstance(message, GatewayStatus):
                    talk.status = message
                elif isinstance(message, UsageBatch):
                    talk.batches.add(message.batch_id)
                    self._feed.deliver(message)
        except (BadMessage, OSError, ValueError) as error:
            log.warning("family.talk_broken", error=str(error))
        finally:
            if talk is not None and self._talks.get(talk.pid) is talk:
                del self._talks[talk.pid]
            writer.close()

    def _hand_down(self, message: FeedSnapshot | FeedDelta) -> None:
        self._tell_all(message)

    def _tell_all(self, message: FeedSnapshot | FeedDelta | LinkState) -> None:
        data = line(message)
        for talk in self._talks.values():
            talk.writer.write(data)

    def _acknowledged(self, batch_id: str) -> None:
        if self._left.acknowledge(batch_id) is not None:
            return
        for talk in self._talks.values():
            if batch_id in talk.batches:
                talk.batches.discard(batch_id)
                talk.writer.write(line(UsageAck(batch_id=batch_id)))

    def _status(self) -> GatewayStatus:
        """All children as one gateway: an instance may be stopped only when none of them sends to it."""
        statuses = [talk.status for talk in self._talks.values() if talk.status is not None]
        routable = dict.fromkeys(name for status in statuses for name in status.routable)
        if self._feed.state is not None:
            routable |= dict.fromkeys(self._feed.state.routable())
        in_flight: dict[str, int] = {}
        for status in statuses:
            for name, count in status.in_flight.items():
                in_flight[name] = in_flight.get(name, 0) + count
        return GatewayStatus(
            at=time.time(),
            routable=tuple(routable),
            in_flight=in_flight,
            requests_per_minute=sum(status.requests_per_minute for status in statuses),
            tokens_per_minute=sum(status.tokens_per_minute for status in statuses),
        )

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
