"""What has to be done so that this server runs what it should: a pure function of what is wanted, seen and remembered.

At most one action an instance at a time. Times are seconds of the agent's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf

from wire.engine import RuntimeKind
from wire.messages import InstanceSpec, InstanceState

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0
HEALTHY_AFTER_S = 60.0
"""An engine that was ready this long before it died starts its back-off anew."""
RECHECK_EVERY_S = 60.0
UNAVAILABLE_RECHECK_S = 5.0


@dataclass(frozen=True)
class Patience:
    """How long a ready engine may be silent."""

    probe_every_s: float = 3.0
    probe_timeout_s: float = 3.0
    unhealthy_after_s: float = 15.0
    kill_after_s: float = 60.0


PATIENCE = Patience()


class Doing(StrEnum):
    """The operation in flight on an instance."""

    FETCH = "fetch"
    START = "start"
    STOP = "stop"
    COLLECT = "collect"
    PROBE = "probe"
    FORGET = "forget"


@dataclass(frozen=True)
class Unit:
    """An engine as a runtime sees it: a container, or a process group."""

    instance_id: str
    spec_hash: str
    runtime: RuntimeKind
    unit_id: str
    running: bool
    port: int = 0


@dataclass(frozen=True)
class Memory:
    """What the agent remembers of one instance under one spec."""

    spec_hash: str
    doing: Doing | None = None
    prepared: bool = False
    """Runtime chosen, image and model files here."""
    failures: int = 0
    """Ended attempts in a row; sets the back-off."""
    fetch_failures: int = 0
    retry_at: float = -inf
    failed: str = ""
    """Why it cannot be run here; empty: it can, as far as is known."""
    recheck_at: float = inf
    """When a failed one is looked at again."""
    reason: str = ""
    started_at: float | None = None
    """None: not running, or adopted and not looked at yet."""
    probed_at: float = -inf
    ready_since: float | None = None
    answered_at: float = -inf


@dataclass(frozen=True)
class Fetch:
    """Choose the runtime, bring image and model files here."""

    spec: InstanceSpec


@dataclass(frozen=True)
class Start:
    spec: InstanceSpec


@dataclass(frozen=True)
class Stop:
    """Stop a running engine. `failed`: because it does not work, so that it counts as a failure."""

    unit: Unit
    reason: str
    failed: bool = False


@dataclass(frozen=True)
class Collect:
    """Keep the last words and the exit code of an engine that ended, then remove what is left of it."""

    unit: Unit


@dataclass(frozen=True)
class Probe:
    """Ask the engine whether it is ready."""

    spec: InstanceSpec
    unit: Unit


@dataclass(frozen=True)
class Cancel:
    """Break off the fetch in flight: it is not wanted any more."""

    instance_id: str


@dataclass(frozen=True)
class Forget:
    """Nothing of it is left: drop the memory, the folder and the mention in the observed state."""

    instance_id: str


Action = Fetch | Start | Stop | Collect | Probe | Cancel | Forget


def instance_of(action: Action) -> str:
    match action:
        case Fetch(spec) | Start(spec) | Probe(spec=spec):
            return spec.instance_id
        case Stop(unit=unit) | Collect(unit):
            return unit.instance_id
        case Cancel(instance_id) | Forget(instance_id):
            return instance_id


def reconcile(
    wanted: Mapping[str, InstanceSpec],
    units: Iterable[Unit],
    memories: Mapping[str, Memory],
    now: float,
    patience: Patience = PATIENCE,
) -> list[Action]:
    """Actions that bring this server from what is seen to what is wanted; only due `Probe`s when they agree.

    Pure and idempotent: called again after the actions were applied (or while they are in flight) it asks for none of
    them twice.
    """
    by_instance: dict[str, list[Unit]] = {}
    for unit in units:
        by_instance.setdefault(unit.instance_id, []).append(unit)
    actions = []
    for instance_id in sorted({*wanted, *by_instance, *memories}):
        spec, memory = wanted.get(instance_id), memories.get(instance_id)
        action = next_action(instance_id, spec, by_instance.get(instance_id, []), memory, now, patience)
        if action is not None:
            actions.append(action)
    return actions


def next_action(
    instance_id: str,
    spec: InstanceSpec | None,
    units: list[Unit],
    memory: Memory | None,
    now: float,
    patience: Patience = PATIENCE,
) -> Action | None:
    """The one next step of one instance; None: nothing to do now."""
    if memory is not None and memory.doing is not None:
        stale = spec is None or memory.spec_hash != spec.spec_hash
        return Cancel(instance_id) if stale and memory.doing is Doing.FETCH else None
    current, others = split(spec, units)
    if others:
        return _remove(others[0], "not desired" if spec is None else "its spec changed")
    if spec is None:
        return Forget(instance_id) if memory is not None else None
    memory = remembered(spec, memory)
    if current is not None:
        return _tend(spec, current, memory, now, patience)
    if memory.failed:
        return Fetch(spec) if now >= memory.recheck_at else None
    if now < memory.retry_at:
        return None
    return Start(spec) if memory.prepared else Fetch(spec)


def _tend(spec: InstanceSpec, unit: Unit, memory: Memory, now: float, patience: Patience) -> Action | None:
    if not unit.running:
        return Collect(unit)
    readiness = spec.engine.readiness
    if memory.ready_since is None:
        if memory.started_at is not None and now - memory.started_at > readiness.start_timeout_s:
            return Stop(unit, f"not ready after {readiness.start_timeout_s:g} s", failed=True)
        every_s = readiness.interval_s
    else:
        silent_s = now - memory.answered_at
        if silent_s > patience.kill_after_s:
            return Stop(unit, f"did not answer its check for {silent_s:.0f} s", failed=True)
        every_s = patience.probe_every_s
    return Probe(spec, unit) if now - memory.probed_at >= every_s else None


def _remove(unit: Unit, reason: str) -> Action:
    return Stop(unit, reason) if unit.running else Collect(unit)


def split(spec: InstanceSpec | None, units: list[Unit]) -> tuple[Unit | None, list[Unit]]:
    """(the unit that runs this spec, those that should go). Of two that fit, a running one is kept."""
    fitting = [unit for unit in units if spec is not None and unit.spec_hash == spec.spec_hash]
    fitting.sort(key=lambda unit: (not unit.running, unit.unit_id))
    current = fitting[0] if fitting else None
    return current, [unit for unit in units if unit is not current]


def remembered(spec: InstanceSpec, memory: Memory | None) -> Memory:
    """The memory that holds for this spec: a changed spec starts with a clean slate."""
    if memory is None or memory.spec_hash != spec.spec_hash:
        return Memory(spec_hash=spec.spec_hash)
    return memory


def delay_s(failures: int) -> float:
    """Back-off after so many failures in a row: 0.5 s, doubled each time, at most a minute."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(max(failures, 1) - 1, 16))


def after_exit(memory: Memory, reason: str, now: float) -> Memory:
    """Memory once an attempt ended by itself or was given up."""
    was_healthy = memory.ready_since is not None and now - memory.ready_since >= HEALTHY_AFTER_S
    failures = 1 if was_healthy else memory.failures + 1
    return replace(
        memory,
        failures=failures,
        fetch_failures=0,
        retry_at=now + delay_s(failures),
        reason=reason,
        ready_since=None,
        started_at=None,
        answered_at=-inf,
        probed_at=-inf,
    )


def after_fetch_failed(memory: Memory, reason: str, now: float) -> Memory:
    failures = memory.fetch_failures + 1
    return replace(
        memory, prepared=False, fetch_failures=failures, retry_at=now + delay_s(failures), reason=reason, failed=""
    )


def after_fetch(memory: Memory) -> Memory:
    return replace(
        memory, prepared=True, fetch_failures=0, failed="", reason="" if not memory.failures else memory.reason
    )


def after_start(memory: Memory, now: float) -> Memory:
    return replace(memory, started_at=now, ready_since=None, answered_at=-inf, probed_at=-inf)


def after_cannot_run(memory: Memory, reason: str, *, recheck_s: float | None, now: float) -> Memory:
    """`recheck_s`: what is missing may appear, so look again after this; None: only another spec helps."""
    return replace(memory, prepared=False, failed=reason, recheck_at=inf if recheck_s is None else now + recheck_s)


def after_probe(memory: Memory, answered: bool, now: float) -> Memory:
    started_at = now if memory.started_at is None else memory.started_at
    if not answered:
        return replace(memory, probed_at=now, started_at=started_at)
    return replace(
        memory,
        probed_at=now,
        started_at=started_at,
        answered_at=now,
        reason="",
        ready_since=now if memory.ready_since is None else memory.ready_since,
    )


def state_of(
    spec: InstanceSpec | None, unit: Unit | None, memory: Memory | None, now: float, patience: Patience = PATIENCE
) -> tuple[InstanceState, str]:
    """(state, reason) to report. `unit` is the one that runs `spec`; without a spec the instance is on its way out."""
    if spec is None:
        return InstanceState.STOPPING, "not desired"
    memory = remembered(spec, memory)
    if memory.doing is Doing.STOP:
        return InstanceState.STOPPING, memory.reason
    if unit is not None and unit.running:
        return _state_of_running(memory, now, patience)
    if memory.failed:
        return InstanceState.FAILED, memory.failed
    if memory.doing is Doing.START:
        return InstanceState.STARTING, memory.reason
    if memory.doing is Doing.FETCH or (memory.fetch_failures and now < memory.retry_at):
        return InstanceState.FETCHING, memory.reason
    if unit is not None:  # dead, not collected yet
        return InstanceState.BACKOFF, "it ended"
    if memory.failures:
        return InstanceState.BACKOFF, memory.reason
    return InstanceState.PENDING, memory.reason


def _state_of_running(memory: Memory, now: float, patience: Patience) -> tuple[InstanceState, str]:
    if memory.ready_since is None:
        return InstanceState.STARTING, memory.reason
    silent_s = now - memory.answered_at
    if silent_s > patience.unhealthy_after_s:
        return InstanceState.UNHEALTHY, f"no answer to its check for more than {patience.unhealthy_after_s:g} s"
    return InstanceState.READY, ""
