"""One gateway process: parts, tasks and their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from gateway.accesslog import AccessLog
from gateway.app import App, Monitor, bad_request
from gateway.family import ChildFeed, adopt_journals, own_journal
from gateway.feed import Feed
from gateway.home import Home, own_host_id
from gateway.http.server import Server
from gateway.metrics import Metrics
from gateway.quotas.minutes import Minutes
from gateway.quotas.shared import SharedLedger
from gateway.service import Service, Settings
from gateway.upstream import Pool
from gateway.usage.journal import Journal
from wire.join import NodeIdentity

log = structlog.get_logger(__name__)

DRAIN_S = 30
"""How long requests in flight may take to end after SIGTERM."""
_BACKLOG = 2048
_LAST_WORDS_S = 1.0


class PortInUse(Exception):
    """The address cannot be listened on; the message says why."""


@dataclass(frozen=True)
class Listen:
    """Where and how to listen. With `tls_cert` and `tls_key` (PEM files) it speaks HTTPS."""

    host: str
    port: int
    tls_cert: str | None = None
    tls_key: str | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    """/metrics is served there (and the next ports for further processes) instead of with the API."""

    def tls(self) -> ssl.SSLContext | None:
        """Raises OSError (ssl.SSLError is one) when the files cannot be used."""
        if self.tls_cert is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self.tls_cert, self.tls_key)
        return context


@dataclass
class Gateway:
    """Builds and runs the parts. Make it inside a running event loop."""

    home: Home
    identity: NodeIdentity
    listen: Listen
    settings: Settings = field(default_factory=Settings)
    port: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """The port it listens on, once it does."""
    is_child: bool = False
    """One of many behind the same port: the parent has the link to the master."""
    number: int = 0
    """Among them."""
    service: Service | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """As SIGTERM does."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then let requests in flight end and write all usage down.

        Raises PortInUse.
        """
        listener = bind(self.listen.host, self.listen.port, reuse_port=self.is_child)
        port: int = listener.getsockname()[1]
        tls = self.home.tls_context(self.identity)
        host_id = own_host_id()
        service, lock = self._parts(host_id, tls)
        self.service = service
        feed = self._feed(service, host_id, port, tls)
        service.attach(feed)
        if not self.is_child:
            minutes = Minutes(self.home.minutes, service.ledger)
            minutes.load(self.home.journal)  # before the journal is tidied up
            if not isinstance(service.quota, SharedLedger):
                service.journal.keep = minutes.keep
        service.recover()
        await service.journal.step(asyncio.get_running_loop().time())  # from the first request on it is written ahead
        feed.load()
        server = Server(App(service), bad_request)
        monitor = Server(Monitor(service), bad_request)
        tasks = [
            asyncio.create_task(_watched("feed", feed.run())),
            asyncio.create_task(_watched("service", service.run())),
            asyncio.create_task(_watched("access_log", service.access_log.run())),
            asyncio.create_task(_watched("request_log", service.request_log.run())),
        ]
        if isinstance(service.quota, SharedLedger):
            tasks.append(asyncio.create_task(_watched("quota", service.quota.run())))
        journal = asyncio.create_task(_watched("journal", service.journal.run()))
        with _signals(self.stop):
            try:
                await server.start(listener, self.listen.tls())
                if self.listen.metrics_port is not None:
                    where = (self.listen.metrics_host, self.listen.metrics_port + self.number)
                    await monitor.start(bind(*where))
                log.info("gateway.listening", url=base_url(self.listen, port), host_id=host_id)
                self.port.set_result(port)
                await self._stop.wait()
                await server.close(DRAIN_S)
                await monitor.close(0.0)
            finally:
                log.info("gateway.stopping")
                await service.journal.close()
                await journal
                await _last_words(service, feed)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await service.pool.close()
                await service.guards.close()
                service.access_log.flush()
                service.request_log.flush()
                if lock is not None:
                    os.close(lock)
        log.info("gateway.stopped")

    def _parts(self, host_id: str, tls: ssl.SSLContext) -> tuple[Service, int | None]:
        """The parts that serve; and what keeps a child's journal from being adopted while it lives."""
        folder, lock = own_journal(self.home) if self.is_child else (self.home.journal, None)
        if not self.is_child:
            adopt_journals(self.home)  # of children of an earlier start
        service = Service(
            Pool(host_id, tls), Journal(folder), Metrics(), AccessLog(), self.home.requests, self.settings
        )
        if self.settings.redis_url:
            service.share_quotas(self.settings.redis_url)
        return service, lock

    def _feed(self, service: Service, host_id: str, port: int, tls: ssl.SSLContext) -> Feed | ChildFeed:
        if self.is_child:
            return ChildFeed(self.home, service.status, self.stop, self.port)
        return Feed(
            self.home,
            self.identity,
            tls,
            host_id=host_id,
            base_url=base_url(self.listen, port),
            status=service.status,
        )


def base_url(listen: Listen, port: int) -> str:
    """Where clients find the API."""
    return f"{'https' if listen.tls_cert else 'http'}://{_named(listen.host)}:{port}/v1"


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT stop it, and nothing ends it sooner: usage must be written down."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A listening TCP socket. Raises PortInUse with one sentence."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortInUse(f"cannot listen on {host}: {error.strerror or error}.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:  # the kernel spreads connections over all that listen
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}; "
            "stop what uses it, or choose another with --port."
        ) from error
    return listener


async def _last_words(service: Service, feed: Feed | ChildFeed) -> None:
    """Give the master a moment to acknowledge the last usage; what it does not is delivered after the next start."""
    if feed.connected and service.journal.waiting:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(service.journal.delivered.wait(), _LAST_WORDS_S)


async def _watched(name: str, work: Coroutine[Any, Any, None]) -> None:
    """A background task must never end by an error unseen."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("task.failed", task=name)
        with contextlib.suppress(ProcessLookupError):
            signal.raise_signal(
                signal.SIGTERM
            )  # without this part the process is of no use: the supervisor restarts it


def _named(host: str) -> str:
    """An address that others can use for it: all interfaces become this host's name."""
    if host in ("0.0.0.0", "::", ""):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
