"""What each action of `reconcile` does: the only place that touches runtimes, store and health checks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import msgspec
import structlog

from agent.choose import choose_runtime
from agent.errors import AgentError, CannotRun, FetchFailed, NotPrepared, RuntimeUnavailable, StartFailed
from agent.hints import explain
from agent.reconcile import (
    PATIENCE,
    RECHECK_EVERY_S,
    UNAVAILABLE_RECHECK_S,
    Action,
    Collect,
    Fetch,
    Forget,
    Memory,
    Patience,
    Probe,
    Start,
    Stop,
    Unit,
    after_cannot_run,
    after_exit,
    after_fetch,
    after_fetch_failed,
    after_probe,
    after_start,
)
from agent.records import KEPT_LINES, Records
from agent.runtimes.base import Ended, Runtime
from agent.store import Store
from wire.engine import RuntimeKind
from wire.messages import InstanceSpec, LastExit

_DEFAULT_GRACE_S = 20.0
_AGAIN_AFTER_S = 1.0
_PATIENCE = 5
"""Tries after which a runtime that does not answer counts as one that this server does not have."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What came of an action: the memory from now on (None: forgotten), units that came and went."""

    memory: Memory | None
    came: tuple[Unit, ...] = ()
    gone: tuple[Unit, ...] = ()


class Operations:
    """Performs actions; safe for many instances at once."""

    def __init__(
        self,
        runtimes: Mapping[RuntimeKind, Runtime],
        records: Records,
        store: Store,
        patience: Patience = PATIENCE,
    ) -> None:
        self._runtimes = runtimes
        self._records = records
        self._store = store
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None
        self._specs: dict[str, InstanceSpec] = {}
        self.progress: dict[str, float] = {}

    async def perform(self, action: Action, memory: Memory, wanted: InstanceSpec | None) -> Outcome:
        """Do `action`. Foreseen failures are part of the outcome. `wanted`: the spec that the instance has now."""
        if wanted is not None:
            self._specs[wanted.instance_id] = wanted
        match action:
            case Fetch(spec):
                return await self._fetch(spec, memory)
            case Start(spec):
                return await self._start(spec, memory)
            case Stop(unit, reason, failed):
                return await self._stop(unit, reason, failed, memory)
            case Collect(unit):
                return await self._collect(unit, memory)
            case Probe(spec, unit):
                return await self._probe(spec, unit, memory)
            case Forget(instance_id):
                await asyncio.to_thread(self._records.forget, instance_id)
                self.progress.pop(instance_id, None)
                if instance_id in self._specs:
                    self._store.mark_used(self._specs.pop(instance_id).model)
                await asyncio.to_thread(self._store.collect_garbage)
                log.info("instance.gone", instance=instance_id)
                return Outcome(None)
        raise AssertionError(action)

    def failed_unforeseen(self, memory: Memory, error: Exception) -> Outcome:
        return Outcome(after_exit(memory, f"the agent failed at it: {type(error).__name__}: {error}", time.monotonic()))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _fetch(self, spec: InstanceSpec, memory: Memory) -> Outcome:
        instance_id = spec.instance_id

        def report(share: float) -> None:
            self.progress[instance_id] = round(share, 2)

        try:
            kind = await self._runtime_of(spec)
            await self._runtimes[kind].prepare(spec.engine, report)
            await self._store.prepare(spec, report)
        except CannotRun as error:
            return self._cannot_run(spec, memory, error)
        except (FetchFailed, RuntimeUnavailable) as error:
            log.warning("instance.fetch_failed", instance=instance_id, reason=error.message)
            after = after_fetch_failed(memory, error.message, time.monotonic())
            if isinstance(error, RuntimeUnavailable) and after.fetch_failures >= _PATIENCE:
                after = after_cannot_run(after, error.message, recheck_s=UNAVAILABLE_RECHECK_S, now=time.monotonic())
            return Outcome(after)
        return Outcome(after_fetch(memory))

    def _cannot_run(self, spec: InstanceSpec, memory: Memory, error: CannotRun) -> Outcome:
        log.warning("instance.cannot_run", instance=spec.instance_id, reason=error.message)
        recheck_s = RECHECK_EVERY_S if error.recheck else None
        reason = f"{error.message}. {error.remedy}"
        return Outcome(after_cannot_run(memory, reason, recheck_s=recheck_s, now=time.monotonic()))

    async def _runtime_of(self, spec: InstanceSpec) -> RuntimeKind:
        record = self._records.get(spec.instance_id)
        if record.spec_hash != spec.spec_hash:
            record = msgspec.structs.replace(record, spec_hash=spec.spec_hash, runtime=RuntimeKind.AUTO)
        kind = await choose_runtime(spec, self._runtimes, record.runtime)
        self._records.put(spec.instance_id, msgspec.structs.replace(record, runtime=kind))
        return kind

    async def _start(self, spec: InstanceSpec, memory: Memory) -> Outcome:
        instance_id = spec.instance_id
        began = time.monotonic()
        try:
            if not await asyncio.to_thread(self._store.is_ready, spec):
                raise NotPrepared("the model's files are not all here, or one is damaged")
            kind = await self._runtime_of(spec)
            record = self._records.get(instance_id)
            self._records.put(instance_id, msgspec.structs.replace(record, attempts=record.attempts + 1))
            unit = await self._runtimes[kind].start(
                spec, await asyncio.to_thread(self._store.folder_of, spec), record.port
            )
        except NotPrepared as error:
            return Outcome(after_fetch_failed(memory, error.message, time.monotonic()))
        except CannotRun as error:
            return self._cannot_run(spec, memory, error)
        except (StartFailed, RuntimeUnavailable) as error:
            ended = Ended(exit_code=None, lines=(error.message,), command=(), ran_s=0.0)
            reason = self._keep_exit(instance_id, ended, error.message)
            return Outcome(after_exit(memory, reason, time.monotonic()))
        record = self._records.get(instance_id)
        self._records.put(instance_id, msgspec.structs.replace(record, port=unit.port))
        took_s = round(time.monotonic() - began, 3)
        log.info("instance.started", instance=instance_id, runtime=kind.value, unit=unit.unit_id, took_s=took_s)
        return Outcome(after_start(memory, time.monotonic()), came=(unit,))

    async def _stop(self, unit: Unit, reason: str, failed: bool, memory: Memory) -> Outcome:
        spec = self._specs.get(unit.instance_id)
        grace_s = spec.engine.stop_grace_s if spec is not None else _DEFAULT_GRACE_S
        try:
            ended = await self._runtimes[unit.runtime].stop(unit, grace_s)
        except AgentError as error:
            log.warning("instance.runtime_silent", instance=unit.instance_id, reason=error.message)
            await asyncio.sleep(_AGAIN_AFTER_S)  # the unit is still there: asked for again
            return Outcome(memory)
        exit_code = ended.exit_code if ended is not None else None
        log.info("instance.stopped", instance=unit.instance_id, unit=unit.unit_id, exit_code=exit_code)
        if failed:
            ended = ended or Ended(exit_code=None, lines=(), command=(), ran_s=0.0)
            memory = after_exit(memory, self._keep_exit(unit.instance_id, ended, reason), time.monotonic())
        return Outcome(memory, gone=(unit,))

    async def _collect(self, unit: Unit, memory: Memory) -> Outcome:
        try:
            ended = await self._runtimes[unit.runtime].collect(unit)
        except AgentError as error:
            log.warning("instance.runtime_silent", instance=unit.instance_id, reason=error.message)
            await asyncio.sleep(_AGAIN_AFTER_S)  # the unit is still there: asked for again
            return Outcome(memory)
        if ended is None:
            return Outcome(memory, gone=(unit,))  # the look that saw it was older than its removal
        reason = self._keep_exit(unit.instance_id, ended, "")
        return Outcome(after_exit(memory, reason, time.monotonic()), gone=(unit,))

    async def _probe(self, spec: InstanceSpec, unit: Unit, memory: Memory) -> Outcome:
        answered = await self._answers(spec, unit.port)
        after = after_probe(memory, answered, time.monotonic())
        if answered and memory.ready_since is None:
            log.info("instance.ready", instance=spec.instance_id, unit=unit.unit_id, port=unit.port)
        return Outcome(after)

    async def _answers(self, spec: InstanceSpec, port: int) -> bool:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._patience.probe_timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout)
        readiness = spec.engine.readiness
        try:
            url = f"http://127.0.0.1:{port}{readiness.path}"
            async with self._session.get(url, allow_redirects=False) as response:
                return response.status == readiness.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def _keep_exit(self, instance_id: str, ended: Ended, given_up: str) -> str:
        """Write the end of an attempt down; a sentence that says it."""
        spec = self._specs.get(instance_id)
        hints = spec.engine.failure_hints if spec is not None else ()
        code_of_its_own = None if given_up else ended.exit_code  # else it is our signal's
        cause, remedy = explain(code_of_its_own, ended.lines, hints)
        last = LastExit(
            attempt=self._records.get(instance_id).attempts,
            exit_code=ended.exit_code,
            at=time.time(),
            ran_s=round(ended.ran_s, 3),
            command=ended.command,
            lines=ended.lines[-KEPT_LINES:],
            cause=cause or given_up,
            remedy=remedy,
        )
        self._records.add_exit(instance_id, last)
        code = "unknown" if ended.exit_code is None else ended.exit_code
        log.warning("instance.ended", instance=instance_id, exit_code=ended.exit_code, cause=last.cause)
        what = given_up or f"it ended with exit code {code}"
        return f"{what}: {cause}" if cause else what
