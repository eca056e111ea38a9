"""The diff as a pure function, against a simulated server."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.reconcile import (
    LONGEST_DELAY_S,
    PATIENCE,
    RECHECK_EVERY_S,
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
    after_cannot_run,
    after_exit,
    after_fetch,
    after_fetch_failed,
    after_probe,
    after_start,
    delay_s,
    instance_of,
    reconcile,
    remembered,
    state_of,
)
from wire.engine import EngineSpec, Readiness, RuntimeKind
from wire.manifest import Manifest
from wire.messages import InstanceSpec, InstanceState

NOW = 1000.0
IDS = ("a", "b", "c")


def make_spec(instance_id: str = "a", spec_hash: str = "h1") -> InstanceSpec:
    return InstanceSpec(
        instance_id=instance_id,
        deployment="d",
        revision=1,
        runtime=RuntimeKind.PROCESS,
        engine=EngineSpec(
            engine="e", image="", program="p", argv=(), readiness=Readiness(start_timeout_s=10, interval_s=0.25)
        ),
        model=Manifest(files=()),
        model_name="m:1",
        spec_hash=spec_hash,
    )


def make_unit(instance_id: str = "a", spec_hash: str = "h1", *, unit_id: str = "1", running: bool = True) -> Unit:
    return Unit(instance_id, spec_hash, RuntimeKind.PROCESS, unit_id, running, port=1)


@dataclass
class World:
    """A server on which everything works at once."""

    wanted: dict[str, InstanceSpec]
    units: list[Unit]
    memories: dict[str, Memory] = field(default_factory=dict)
    now: float = NOW
    started: int = 0

    def due(self) -> list[Action]:
        return reconcile(self.wanted, self.units, self.memories, self.now)

    def apply(self, action: Action) -> None:
        key = instance_of(action)
        spec = self.wanted.get(key)
        memory = self.memories.get(key) or Memory(spec_hash="")
        if spec is not None:
            memory = remembered(spec, memory)
        match action:
            case Fetch():
                memory = after_fetch(memory)
            case Start(spec):
                self.started += 1
                self.units.append(make_unit(key, spec.spec_hash, unit_id=f"new{self.started}"))
                memory = after_start(memory, self.now)
            case Stop(unit=unit, failed=failed):
                self.units.remove(unit)
                memory = after_exit(memory, "failed", self.now) if failed else memory
            case Collect(unit=unit):
                self.units.remove(unit)
                memory = after_exit(memory, "ended", self.now)
            case Probe():
                memory = after_probe(memory, answered=True, now=self.now)
            case Cancel():
                memory = replace(memory, doing=None)
        if isinstance(action, Forget):
            del self.memories[key]
        else:
            self.memories[key] = memory


specs = st.builds(make_spec, st.sampled_from(IDS), st.sampled_from(("h1", "h2")))
units = st.builds(
    make_unit,
    st.sampled_from(IDS),
    st.sampled_from(("h1", "h2", "h3")),
    unit_id=st.sampled_from("123456"),
    running=st.booleans(),
)
times = st.floats(NOW - 200, NOW + 50)
memories = st.builds(
    Memory,
    spec_hash=st.sampled_from(("", "h1", "h2")),
    prepared=st.booleans(),
    failures=st.integers(0, 9),
    retry_at=times,
    failed=st.sampled_from(("", "missing")),
    recheck_at=times,
    started_at=st.none() | times,
    probed_at=times,
    ready_since=st.none() | times,
    answered_at=times,
)
worlds = st.builds(
    lambda wanted, seen, remembered_: World(
        {spec.instance_id: spec for spec in wanted},
        list({unit.unit_id: unit for unit in seen}.values()),
        dict(zip(IDS, remembered_, strict=False)),
    ),
    st.lists(specs, max_size=3),
    st.lists(units, max_size=6),
    st.lists(memories, max_size=3),
)


@given(worlds)
@settings(max_examples=300, deadline=None)
def test_it_converges_from_anywhere_and_then_only_probes(world: World) -> None:
    for _ in range(40):
        for action in world.due():
            world.apply(action)
        world.now += LONGEST_DELAY_S + 1  # past every back-off; every engine answers when asked
        for key, memory in world.memories.items():
            if memory.ready_since is not None:
                world.memories[key] = replace(memory, answered_at=world.now)
            elif memory.started_at is not None:
                world.memories[key] = replace(memory, started_at=world.now)
    assert all(isinstance(action, Probe) for action in world.due())
    assert sorted((unit.instance_id, unit.spec_hash) for unit in world.units if unit.running) == sorted(
        (spec.instance_id, spec.spec_hash) for spec in world.wanted.values()
    )
    assert set(world.memories) == set(world.wanted)


@given(worlds)
@settings(max_examples=300, deadline=None)
def test_it_asks_for_one_action_an_instance_and_is_silent_while_they_are_in_flight(world: World) -> None:
    actions = world.due()
    ids = [instance_of(action) for action in actions]
    assert len(ids) == len(set(ids))
    for action in actions:
        key = instance_of(action)
        spec = world.wanted.get(key)
        memory = world.memories.get(key) or Memory(spec_hash="")
        world.memories[key] = replace(remembered(spec, memory) if spec else memory, doing=Doing.STOP)
    assert [action for action in world.due() if instance_of(action) in ids] == []


@given(worlds)
@settings(max_examples=200, deadline=None)
def test_a_healthy_unit_that_is_wanted_is_never_stopped(world: World) -> None:
    for spec in world.wanted.values():
        world.units = [unit for unit in world.units if unit.instance_id != spec.instance_id]
        world.units.append(make_unit(spec.instance_id, spec.spec_hash, unit_id=f"good-{spec.instance_id}"))
        world.memories[spec.instance_id] = Memory(
            spec_hash=spec.spec_hash, ready_since=NOW - 5, answered_at=NOW, probed_at=NOW
        )
    assert not [action for action in world.due() if instance_of(action) in world.wanted]


def test_a_wanted_instance_is_fetched_then_started_then_probed() -> None:
    world = World({"a": make_spec()}, [])
    kinds = []
    for _ in range(3):
        (action,) = world.due()
        kinds.append(type(action))
        world.apply(action)
    assert kinds == [Fetch, Start, Probe]


def test_an_adopted_unit_is_only_probed() -> None:
    assert reconcile({"a": make_spec()}, [make_unit()], {}, NOW) == [Probe(make_spec(), make_unit())]


def test_a_unit_of_another_spec_is_stopped_before_the_new_one_starts() -> None:
    (action,) = reconcile({"a": make_spec(spec_hash="h2")}, [make_unit()], {}, NOW)
    assert action == Stop(make_unit(), "its spec changed")


def test_a_fetch_in_flight_is_cancelled_when_it_is_not_wanted_any_more() -> None:
    assert reconcile({}, [], {"a": Memory(spec_hash="h1", doing=Doing.FETCH)}, NOW) == [Cancel("a")]


def test_an_engine_that_is_not_ready_in_time_is_stopped_as_failed() -> None:
    memory = Memory(spec_hash="h1", started_at=NOW - 10.1)
    (action,) = reconcile({"a": make_spec()}, [make_unit()], {"a": memory}, NOW)
    assert isinstance(action, Stop)
    assert action.failed
    assert action.reason == "not ready after 10 s"


def test_a_ready_engine_that_falls_silent_is_unhealthy_first_and_killed_later() -> None:
    def memory(silent_s: float) -> Memory:
        return Memory(spec_hash="h1", ready_since=NOW - 500, answered_at=NOW - silent_s, probed_at=NOW)

    assert state_of(make_spec(), make_unit(), memory(14), NOW)[0] is InstanceState.READY
    assert state_of(make_spec(), make_unit(), memory(16), NOW)[0] is InstanceState.UNHEALTHY
    assert reconcile({"a": make_spec()}, [make_unit()], {"a": memory(16)}, NOW) == []
    (action,) = reconcile({"a": make_spec()}, [make_unit()], {"a": memory(PATIENCE.kill_after_s + 1)}, NOW)
    assert isinstance(action, Stop)
    assert action.failed


def test_the_back_off_doubles_from_half_a_second_to_a_minute() -> None:
    assert [delay_s(failures) for failures in range(1, 10)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_the_back_off_starts_anew_after_a_healthy_minute() -> None:
    memory = Memory(spec_hash="h1", failures=6, ready_since=NOW - 61)
    assert after_exit(memory, "died", NOW).failures == 1
    assert after_exit(replace(memory, ready_since=NOW - 10), "died", NOW).failures == 7


def test_what_cannot_run_here_is_looked_at_again_only_where_that_can_help() -> None:
    missing = after_cannot_run(Memory(spec_hash="h1"), "no program", recheck_s=RECHECK_EVERY_S, now=NOW)
    damaged = after_cannot_run(Memory(spec_hash="h1"), "damaged", recheck_s=None, now=NOW)
    wanted = {"a": make_spec()}
    assert state_of(make_spec(), None, missing, NOW) == (InstanceState.FAILED, "no program")
    assert reconcile(wanted, [], {"a": missing}, NOW + 59) == []
    assert reconcile(wanted, [], {"a": missing}, NOW + 60) == [Fetch(make_spec())]
    assert reconcile(wanted, [], {"a": damaged}, NOW + 1e6) == []
    assert reconcile({"a": make_spec(spec_hash="h2")}, [], {"a": damaged}, NOW) == [Fetch(make_spec(spec_hash="h2"))]


def test_an_adopted_engine_that_dies_is_shown_as_backing_off_not_as_fetching() -> None:
    dead = after_exit(remembered(make_spec(), None), "it ended with exit code unknown", NOW)
    assert state_of(make_spec(), None, dead, NOW) == (InstanceState.BACKOFF, "it ended with exit code unknown")
    assert state_of(make_spec(), make_unit(running=False), None, NOW) == (InstanceState.BACKOFF, "it ended")


def test_a_fetch_that_failed_is_shown_as_fetching_with_its_reason_until_it_works() -> None:
    failed = after_fetch_failed(Memory(spec_hash="h1", failures=3), "no connection", NOW)
    assert state_of(make_spec(), None, failed, NOW) == (InstanceState.FETCHING, "no connection")
    assert reconcile({"a": make_spec()}, [], {"a": failed}, NOW) == []
    assert reconcile({"a": make_spec()}, [], {"a": failed}, failed.retry_at) == [Fetch(make_spec())]


def test_how_long_silence_is_borne_can_be_set() -> None:
    short = Patience(unhealthy_after_s=1, kill_after_s=2)
    memory = Memory(spec_hash="h1", ready_since=NOW - 500, answered_at=NOW - 1.5, probed_at=NOW)
    assert state_of(make_spec(), make_unit(), memory, NOW, short)[0] is InstanceState.UNHEALTHY
    (action,) = reconcile({"a": make_spec()}, [make_unit()], {"a": memory}, NOW + 1, short)
    assert isinstance(action, Stop)
