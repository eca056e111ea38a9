"""Makes it so: looks, asks `reconcile` what to do, and does it, every instance in a task of its own.

One operation at a time an instance, any number over all: a slow start or fetch holds up nobody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import msgspec
import structlog

from agent.errors import AgentError
from agent.operations import Operations, Outcome
from agent.reconcile import (
    PATIENCE,
    Action,
    Cancel,
    Collect,
    Doing,
    Fetch,
    Forget,
    Memory,
    Patience,
    Probe,
    Start,
    Stop,
    Unit,
    instance_of,
    reconcile,
    remembered,
    split,
    state_of,
)
from agent.records import Records
from agent.runtimes.base import Runtime
from wire.engine import RuntimeKind
from wire.messages import DesiredState, InstanceSpec, InstanceState, ObservedInstance

LOOK_EVERY_S = 1.0
_LONGEST_WAIT_S = 1.0
_SHORTEST_WAIT_S = 0.05
_MEMORY_EVERY_S = 5.0
_AGAIN_AFTER_S = 1.0

log = structlog.get_logger(__name__)

_DOING: Mapping[type, Doing] = {
    Fetch: Doing.FETCH,
    Start: Doing.START,
    Stop: Doing.STOP,
    Collect: Doing.COLLECT,
    Probe: Doing.PROBE,
    Forget: Doing.FORGET,
}


class Supervisor:
    """Owns the units of this home while it runs, and leaves them running when it ends."""

    def __init__(
        self,
        runtimes: Mapping[RuntimeKind, Runtime],
        records: Records,
        operations: Operations,
        desired: Callable[[], DesiredState | None],
        patience: Patience = PATIENCE,
    ) -> None:
        self._runtimes = runtimes
        self._records = records
        self._operations = operations
        self._desired = desired
        """None before any state was accepted: until then nothing is touched."""
        self._patience = patience
        self._units: dict[RuntimeKind, dict[str, Unit]] = {kind: {} for kind in runtimes}
        self._versions = dict.fromkeys(runtimes, 0)
        self._looked = {kind: asyncio.Event() for kind in runtimes}
        self._memories: dict[str, Memory] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._first: set[str] | None = None
        self._since: dict[str, tuple[InstanceState, float]] = {}
        self._memory_bytes: dict[str, int] = {}
        self._last_view: tuple[ObservedInstance, ...] = ()
        self.changed = asyncio.Event()
        """Set whenever `observed()` says something new."""
        self.settled = asyncio.Event()
        """Set once what an earlier agent left was found and asked for its health."""

    def wake(self) -> None:
        """Look again now: the desired state changed."""
        self._wake.set()

    async def run(self) -> None:
        """Supervise until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for kind, runtime in self._runtimes.items():
                    group.create_task(self._watch(kind, runtime))
                group.create_task(self._measure())
                group.create_task(self._loop())
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def observed(self) -> tuple[ObservedInstance, ...]:
        """Everything this agent knows of its instances, now."""
        now = time.monotonic()
        wanted = self._wanted()
        seen = self._by_instance()
        known = sorted({*wanted, *seen, *self._memories})
        return tuple(self._view(key, wanted.get(key), seen.get(key, []), now) for key in known)

    def port_of(self, instance_id: str) -> int | None:
        """Loopback port of a running unit of this instance."""
        for unit in self._by_instance().get(instance_id, []):
            if unit.running and unit.port:
                return unit.port
        return None

    async def tail(self, instance_id: str, lines: int) -> tuple[str, ...]:
        """Last lines of its output; of its last end when nothing runs. Raises AgentError when it is not known."""
        found: tuple[str, ...] = ()
        for runtime in self._runtimes.values():
            try:
                found = found or await runtime.tail(instance_id, lines)
            except AgentError as error:
                log.info("tail.failed", instance=instance_id, error=error.message)
        if found:
            return found
        exits = self._records.get(instance_id).exits if instance_id in self._records.known() else ()
        if not exits and instance_id not in self._wanted():
            raise AgentError(f"no instance {instance_id} on this server")
        return exits[-1].lines[-lines:] if exits else ()

    def _wanted(self) -> dict[str, InstanceSpec]:
        desired = self._desired()
        return {} if desired is None else {spec.instance_id: spec for spec in desired.instances}

    def _by_instance(self) -> dict[str, list[Unit]]:
        seen: dict[str, list[Unit]] = {}
        for units in self._units.values():
            for unit in units.values():
                seen.setdefault(unit.instance_id, []).append(unit)
        return seen

    async def _watch(self, kind: RuntimeKind, runtime: Runtime) -> None:
        """Keep the list of units fresh. A list begun before an operation ended is thrown away: it is older."""
        while True:
            version = self._versions[kind]
            try:
                units = await runtime.units()
            except AgentError as error:
                log.debug("runtime.silent", runtime=kind.value, error=error.message)  # unknown is not gone
            except Exception:
                log.exception("runtime.look_failed", runtime=kind.value)  # one look less, not one agent less
            else:
                if version == self._versions[kind]:
                    fresh = {unit.unit_id: unit for unit in units}
                    if fresh != self._units[kind]:
                        self._units[kind] = fresh
                        self._wake.set()
                elif not self._looked[kind].is_set():
                    continue
            self._looked[kind].set()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _measure(self) -> None:
        while True:
            for units in list(self._units.values()):
                for unit in list(units.values()):
                    if unit.running:
                        try:
                            size = await self._runtimes[unit.runtime].memory_bytes(unit)
                        except AgentError:
                            continue  # shown as it was
                        except Exception:
                            log.exception("runtime.measure_failed", instance=unit.instance_id)
                            continue
                        self._memory_bytes[unit.unit_id] = size
            live = {unit_id for units in self._units.values() for unit_id in units}
            self._memory_bytes = {key: size for key, size in self._memory_bytes.items() if key in live}
            await asyncio.sleep(_MEMORY_EVERY_S)

    async def _loop(self) -> None:
        for looked in self._looked.values():
            await looked.wait()  # nothing is started before what runs already was seen
        for instance_id in self._records.known():
            self._memories.setdefault(instance_id, Memory(spec_hash=""))  # it may be the folder of one long gone
        while True:
            self._wake.clear()
            self._step(time.monotonic())
            try:
                async with asyncio.timeout(self._wait_s(time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _step(self, now: float) -> None:
        if self._desired() is not None:
            units = [unit for units in self._units.values() for unit in units.values()]
            for action in reconcile(self._wanted(), units, self._memories, now, self._patience):
                self._launch(action)
        self._publish()
        if self._first is None:
            looks = (Doing.PROBE, Doing.COLLECT)
            self._first = {key for key, memory in self._memories.items() if memory.doing in looks}
        if not self._first:
            self.settled.set()

    def _wait_s(self, now: float) -> float:
        """Until something is due by the clock alone."""
        due = now + _LONGEST_WAIT_S
        wanted = self._wanted()
        for instance_id, memory in self._memories.items():
            if memory.doing is not None or instance_id not in wanted:
                continue
            if memory.retry_at > now:
                due = min(due, memory.retry_at)
            elif memory.started_at is not None and memory.ready_since is None:
                due = min(due, memory.probed_at + wanted[instance_id].engine.readiness.interval_s)
        return max(_SHORTEST_WAIT_S, due - now)

    def _launch(self, action: Action) -> None:
        instance_id = instance_of(action)
        if isinstance(action, Cancel):
            self._tasks[instance_id].cancel()
            return
        spec = self._wanted().get(instance_id)
        memory = self._memories.get(instance_id)
        if spec is not None:
            memory = remembered(spec, memory)
        elif memory is None:
            memory = Memory(spec_hash="")
        if isinstance(action, Stop):
            log.info("instance.stopping", instance=instance_id, unit=action.unit.unit_id, reason=action.reason)
            memory = replace(memory, reason=action.reason)
        self._memories[instance_id] = replace(memory, doing=_DOING[type(action)])
        task = asyncio.create_task(self._perform(instance_id, action), name=f"{type(action).__name__} {instance_id}")
        self._tasks[instance_id] = task

    async def _perform(self, instance_id: str, action: Action) -> None:
        """Do it, then remember what came of it."""
        try:
            outcome = await self._attempt(instance_id, action)
        except asyncio.CancelledError:
            self._memories[instance_id] = replace(self._memories[instance_id], doing=None)
            self._wake.set()
            raise
        finally:
            self._tasks.pop(instance_id, None)
            if self._first:
                self._first.discard(instance_id)
        for unit in outcome.gone:
            self._units[unit.runtime].pop(unit.unit_id, None)
            self._versions[unit.runtime] += 1
        for unit in outcome.came:
            self._units[unit.runtime][unit.unit_id] = unit
            self._versions[unit.runtime] += 1
        if outcome.memory is None:
            self._memories.pop(instance_id, None)
            self._since.pop(instance_id, None)
        else:
            self._memories[instance_id] = replace(outcome.memory, doing=None)
        self._wake.set()

    async def _attempt(self, instance_id: str, action: Action) -> Outcome:
        """A failure that nobody foresaw is logged, and backs off like a crash."""
        memory = self._memories[instance_id]
        try:
            return await self._operations.perform(action, memory, self._wanted().get(instance_id))
        except Exception as error:
            log.exception("instance.operation_failed", instance=instance_id, action=type(action).__name__)
            await asyncio.sleep(_AGAIN_AFTER_S)  # a stop or collect has no back-off of its own
            return self._operations.failed_unforeseen(memory, error)

    def _publish(self) -> None:
        """Set `changed` when there is news; the size of memory alone is none."""
        view = tuple(msgspec.structs.replace(each, memory_bytes=0) for each in self.observed())
        if view != self._last_view:
            self._last_view = view
            self.changed.set()

    def _view(self, instance_id: str, spec: InstanceSpec | None, units: list[Unit], now: float) -> ObservedInstance:
        current, others = split(spec, units)
        memory = self._memories.get(instance_id)
        state, reason = state_of(spec, current, memory, now, self._patience)
        shown = current or (others[0] if others else None)
        record = self._records.get(instance_id)
        if self._since.get(instance_id, (None,))[0] is not state:
            self._since[instance_id] = (state, time.time())
            log.info("instance.state", instance=instance_id, state=state.value, reason=reason)
        retry_at = 0.0
        if memory is not None and memory.retry_at > now and (shown is None or not shown.running):
            retry_at = round(time.time() + memory.retry_at - now, 1)
        return ObservedInstance(
            instance_id=instance_id,
            spec_hash=spec.spec_hash if spec is not None else (shown.spec_hash if shown is not None else ""),
            state=state,
            reason=reason,
            since=self._since[instance_id][1],
            runtime=shown.runtime if shown is not None else record.runtime,
            unit_id=shown.unit_id if shown is not None else "",
            port=shown.port if shown is not None and shown.running else 0,
            restarts=max(0, record.attempts - 1 - record.stops),
            retry_at=retry_at,
            progress=self._operations.progress.get(instance_id, 0.0) if state is InstanceState.FETCHING else 0.0,
            memory_bytes=self._memory_bytes.get(shown.unit_id, 0) if shown is not None else 0,
            exits=record.exits,
        )
