"""Wires the parts of the agent together, and owns all that runs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Mapping

import structlog

from agent.desired import Acceptance
from agent.errors import AgentError, JoinFailed
from agent.home import AgentConfig, AgentHome
from agent.join import join
from agent.link import Link, Voices
from agent.operations import Operations
from agent.reconcile import PATIENCE, Patience
from agent.records import Records
from agent.relay import Relay
from agent.resources import own_addresses, read_facts, read_load
from agent.runtimes.base import Runtime
from agent.runtimes.docker import DockerRuntime
from agent.runtimes.process import ProcessRuntime
from agent.store import Store
from agent.store.holder import Holder
from agent.store.scrub import Scrub
from agent.store.serve import BlobServer
from agent.store.sources import Network
from agent.supervise import Supervisor
from wire.engine import RuntimeKind
from wire.errors import WireError
from wire.join import NodeIdentity, reconnect_delay_s
from wire.messages import Facts, Load, Observed, RuntimeInfo

_SETTLE_S = 4.0
_INFO_TIMEOUT_S = 3.0
_GRACE_OF_LEFTOVERS_S = 20.0

log = structlog.get_logger(__name__)


def make_runtimes(home: AgentHome, config: AgentConfig) -> dict[RuntimeKind, Runtime]:
    """The runtimes that this server may use; docker also where no daemon answers yet."""
    runtimes: dict[RuntimeKind, Runtime] = {RuntimeKind.PROCESS: ProcessRuntime(home, config)}
    if config.docker is not False:
        runtimes[RuntimeKind.DOCKER] = DockerRuntime(home)
    return runtimes


class Agent:
    """One agent on one home, whose lock the caller holds."""

    def __init__(
        self, home: AgentHome, identity: NodeIdentity, config: AgentConfig, patience: Patience = PATIENCE
    ) -> None:
        self._home = home
        self._config = config
        self._addresses = home.addresses() or own_addresses()
        self.acceptance = Acceptance(home, identity)
        self.acceptance.load()
        self._runtimes = make_runtimes(home, config)
        self._records = Records(home)
        self._network = Network(identity, lambda: self._link.bearer(), home.relay_pem)
        self._store = Store(
            home.path, self._network, quota_bytes=config.disk_quota_bytes, shared_roots=config.shared_roots
        )
        self._holder = Holder(self._store, lambda: self.acceptance.state)
        self._scrub = Scrub(self._store, lambda: self.acceptance.state.cache)
        self._blob_server = BlobServer(self._store)
        self._store.in_use = lambda: [spec.model for spec in self.acceptance.state.instances]
        self._operations = Operations(self._runtimes, self._records, self._store, patience)
        self.supervisor = Supervisor(
            self._runtimes, self._records, self._operations, lambda: self.acceptance.in_force, patience
        )
        self.relay = Relay(
            home,
            identity,
            self.supervisor.port_of,
            lambda: self.acceptance.state.revoked_certificates,
            self._blob_server.protocol,
        )
        voices = Voices(
            facts=self._facts,
            load=self._load,
            observed=self._observed,
            tail=self.supervisor.tail,
            accepted=self._accepted,
            cache=self._holder.news,
            greeted=self._holder.forget_said,
        )
        self._link: Link = Link(identity, self.acceptance, voices, self.supervisor.changed, self._holder.changed)

    async def run(self) -> None:
        """Run until cancelled. Engines are left running."""
        try:
            await asyncio.to_thread(self._store.take_over)
            self._apply_policy()
            await self.relay.start(self._config.relay_host, self._config.relay_port)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.supervisor.run(), name="supervisor")
                group.create_task(self._holder.run(), name="holder")
                group.create_task(self._scrub.run(), name="scrub")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SETTLE_S):
                        # so that a restart of the agent never tells the master that a ready engine is not
                        await self.supervisor.settled.wait()
                group.create_task(self._link.run(), name="link")
        finally:
            await self.relay.close()
            await self._operations.close()
            await self._blob_server.close()
            await self._network.close()
            await close_runtimes(self._runtimes)

    def _accepted(self) -> None:
        """A desired state came that holds something new."""
        self.supervisor.wake()
        self.relay.cut_revoked()
        self._apply_policy()

    def _apply_policy(self) -> None:
        self._holder.wake()
        self._blob_server.limit.bytes_per_second = self.acceptance.state.cache.upload_bytes_per_second

    def _observed(self) -> Observed:
        return Observed(
            generation=self.acceptance.state.generation,
            instances=self.supervisor.observed(),
            rejected=self.acceptance.rejected,
        )

    async def _facts(self) -> Facts:
        infos = await asyncio.gather(*(self._info(runtime) for runtime in self._runtimes.values()))
        working = tuple(info for info in infos if info is not None)
        return await asyncio.to_thread(read_facts, working, relay_port=self.relay.port, addresses=self._addresses)

    async def _info(self, runtime: Runtime) -> RuntimeInfo | None:
        try:
            async with asyncio.timeout(_INFO_TIMEOUT_S):
                return await runtime.info()
        except TimeoutError:
            return None  # a daemon that hangs must not keep the rest from the master

    async def _load(self) -> Load:
        return await asyncio.to_thread(read_load, self._home.path)


async def close_runtimes(runtimes: Mapping[RuntimeKind, Runtime]) -> None:
    for runtime in runtimes.values():
        await runtime.close()


async def run_until_signal(agent: Agent) -> None:
    """Run `agent` until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    running = asyncio.create_task(agent.run(), name="agent")
    waiting = asyncio.create_task(stopping.wait(), name="signal")
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if running.done():
        running.result()  # its error, where it had one
        return
    log.info("agent.stopping", engines="left running")
    running.cancel()
    await asyncio.wait({running}, timeout=1.5)


async def join_patiently(
    home: AgentHome, *, master_url: str, token: str, name: str, addresses: tuple[str, ...], limit_s: float
) -> NodeIdentity:
    """Join, and wait up to `limit_s` for a master that does not answer yet. Raises JoinFailed."""
    deadline = asyncio.get_running_loop().time() + limit_s
    attempt = 0
    while True:
        try:
            return await join(home, master_url=master_url, token_text=token, name=name, addresses=addresses)
        except JoinFailed as error:
            pause_s = reconnect_delay_s(attempt, random.random())  # noqa: S311 - jitter, no secret
            if not error.retry or asyncio.get_running_loop().time() + pause_s > deadline:
                raise
            log.info("join.waits", reason=error.message)
        attempt += 1
        await asyncio.sleep(pause_s)


async def stop_engines(home: AgentHome, config: AgentConfig) -> int:
    """Stop and remove every unit of this home, all at once; how many there were. The caller holds the lock."""
    runtimes = make_runtimes(home, config)
    grace_s = _graces(home)
    records = Records(home)

    async def stop_all(runtime: Runtime) -> int:
        try:
            units = await runtime.units()
        except AgentError as error:
            log.info("stop_engines.runtime_silent", runtime=runtime.kind.value, reason=error.message)
            return 0
        stops = [runtime.stop(unit, grace_s.get(unit.instance_id, _GRACE_OF_LEFTOVERS_S)) for unit in units]
        ends = await asyncio.gather(*stops, return_exceptions=True)  # one that cannot be stopped saves no other
        for unit, end in zip(units, ends, strict=True):
            if isinstance(end, BaseException):
                raise end
            records.add_stop(unit.instance_id)
        return len(units)

    try:
        return sum(await asyncio.gather(*(stop_all(runtime) for runtime in runtimes.values())))
    finally:
        await close_runtimes(runtimes)


def _graces(home: AgentHome) -> dict[str, float]:
    identity = home.identity()
    if identity is None:
        return {}
    try:
        acceptance = Acceptance(home, identity)
    except (WireError, ValueError):
        return {}
    acceptance.load()
    return {spec.instance_id: spec.engine.stop_grace_s for spec in acceptance.state.instances}
