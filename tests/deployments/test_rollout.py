"""Rollouts in a small world of agents: they converge, stay within memory, and keep serving meanwhile."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.rollout import Host, Seen, Stage, Wanted, plan
from tests.deployments.simulation import World
from wire.messages import InstanceState

SIZES = st.lists(st.integers(4, 40), min_size=1, max_size=4).map(
    lambda sizes: {f"s{number}": size for number, size in enumerate(sizes)}
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("scale"), st.integers(0, 5)),
        st.tuples(st.just("update"), st.integers(2, 8)),
        st.tuples(st.just("fail"), st.integers(2, 8)),
        st.tuples(st.just("drain"), st.integers(0, 3)),
        st.tuples(st.just("lose"), st.integers(0, 3)),
        st.tuples(st.just("evict"), st.integers(0, 3)),
        st.tuples(st.just("revoke"), st.integers(0, 3)),
        st.tuples(st.just("back"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.integers(1, 12)),
    ),
    max_size=12,
)
_HOSTS = {"drain": Host.DRAINING, "lose": Host.LOST, "evict": Host.EVICTED, "revoke": Host.REVOKED, "back": Host.SOUND}


def settled(**fields) -> World:
    world = World(**fields)
    world.settle()
    assert len(world.ready(world.revision)) == world.replicas
    return world


def watch(world: World, at_least: int) -> None:
    """Let the world settle; never fewer than `at_least` may serve meanwhile."""

    def check() -> None:
        assert len(world.ready()) >= at_least, world.live()

    world.settle(each=check)


def act(world: World, what: str, number: int) -> None:
    server = f"s{number % len(world.servers)}"
    if what == "scale":
        world.replicas = number
    elif what in ("update", "fail"):
        world.update(memory_gib=number)
        if what == "fail":
            world.failing.add(world.revision)
    elif what == "wait":
        for _ in range(number):
            world.tick()
    elif world.host(server) is not Host.REVOKED:
        world.hosts[server] = _HOSTS[what]


@settings(max_examples=120, deadline=None)
@given(sizes=SIZES, replicas=st.integers(0, 4), actions=ACTIONS, busy=st.integers(0, 8))
def test_whatever_happens_it_settles_within_memory(sizes: dict[str, int], replicas: int, actions: list, busy: int):
    world = World(sizes, replicas=replicas, busy_for_s=busy)
    for what, number in actions:
        act(world, what, number)
    world.settle(limit_s=1500)
    assert all(unit.stage is Stage.RUN for unit in world.live()), "something is still on its way out"
    if world.replicas == 0:
        assert not world.live()
    if len(world.ready(world.revision)) < world.replicas:
        assert world.outcome is not None
        lost = any(world.host(unit.server) in (Host.LOST, Host.EVICTED) for unit in world.live())
        assert world.outcome.explanation or lost, "less than wanted, and no reason given"


@settings(max_examples=80, deadline=None)
@given(replicas=st.integers(1, 4), servers=st.integers(1, 4), memory=st.integers(1, 4), busy=st.integers(0, 8))
def test_an_update_with_room_never_serves_with_fewer(replicas: int, servers: int, memory: int, busy: int) -> None:
    world = settled(servers={f"s{n}": 24 for n in range(servers)}, replicas=replicas, busy_for_s=busy)
    world.update(memory_gib=memory)
    watch(world, at_least=replicas)
    assert len(world.ready(world.revision)) == replicas
    assert len(world.live()) == replicas


@settings(max_examples=60, deadline=None)
@given(replicas=st.integers(1, 4), drained=st.integers(0, 2), busy=st.integers(0, 8))
def test_a_drain_with_room_never_serves_with_fewer(replicas: int, drained: int, busy: int) -> None:
    world = settled(servers={"s0": 24, "s1": 24, "s2": 24}, replicas=replicas, busy_for_s=busy)
    world.hosts[f"s{drained}"] = Host.DRAINING
    watch(world, at_least=replicas)
    assert world.used_gib(f"s{drained}") == 0
    assert len(world.ready()) == replicas


@settings(max_examples=60, deadline=None)
@given(replicas=st.integers(1, 4), servers=st.integers(1, 3))
def test_a_failing_revision_is_halted_and_the_old_one_keeps_serving(replicas: int, servers: int) -> None:
    world = settled(servers={f"s{n}": 24 for n in range(servers)}, replicas=replicas)
    world.update()
    world.failing.add(world.revision)
    watch(world, at_least=replicas)
    assert world.outcome is not None
    assert world.outcome.halted
    assert "the rollout is halted" in world.outcome.explanation.lower()
    assert len(world.live()) == replicas + 1


def test_a_halted_rollout_is_overtaken_by_a_good_revision() -> None:
    world = settled(servers={"s0": 24, "s1": 24}, replicas=2)
    world.update()
    world.failing.add(world.revision)
    world.settle()
    world.update()
    watch(world, at_least=2)
    assert len(world.ready(world.revision)) == len(world.live()) == 2


def test_without_room_for_both_it_is_replaced_in_place_and_not_called_unplaceable() -> None:
    world = settled(servers={"s0": 5}, replicas=1)
    world.update()

    def check() -> None:
        assert world.outcome is not None
        assert not world.outcome.unplaceable
        assert not world.outcome.refusals

    world.settle(each=check)
    assert len(world.ready(world.revision)) == len(world.live()) == 1


def test_an_update_that_fits_nowhere_leaves_the_old_one_serving_and_says_why() -> None:
    world = settled(servers={"s0": 8}, replicas=1)
    world.update(memory_gib=12)
    watch(world, at_least=1)
    assert world.outcome is not None
    assert world.outcome.unplaceable
    assert world.outcome.refusals == {"s0": "not enough memory: needs 12.0 GiB, 4.0 GiB of 8.0 GiB free"}
    assert len(world.ready(1)) == 1


def test_a_drain_without_room_leaves_it_serving_and_says_so() -> None:
    world = settled(servers={"s0": 8, "s1": 2}, replicas=1)
    world.hosts["s0"] = Host.DRAINING
    watch(world, at_least=1)
    assert world.outcome is not None
    assert "is being drained, it stays there until another serves" in world.outcome.explanation


def test_what_fails_on_one_server_is_tried_on_another() -> None:
    world = World({"s0": 24, "s1": 12}, failing_on={"s0"})
    world.settle()
    assert [unit.server for unit in world.ready()] == ["s1"]
    assert len(world.live()) == 1


def test_what_fails_everywhere_stays_and_does_not_wander() -> None:
    world = World({"s0": 24, "s1": 12}, failing={1})
    world.settle()
    assert len(world.live()) == 1
    assert len(world.units) <= 3
    assert world.outcome is not None
    assert "Keeps failing on" in world.outcome.explanation


def test_an_evicted_server_is_replaced_and_the_surplus_ends_when_it_is_back() -> None:
    world = settled(servers={"s0": 24, "s1": 24}, replicas=2)
    world.hosts["s0"] = Host.LOST
    for _ in range(20):
        world.tick()
    assert len(world.units) == 2, "a lost server's instances are left until it is evicted"
    world.hosts["s0"] = Host.EVICTED
    world.settle()
    assert [unit.server for unit in world.ready()] == ["s1", "s1"]
    world.hosts["s0"] = Host.SOUND
    world.settle()
    assert len(world.live()) == len(world.ready()) == 2


def test_instances_of_a_revoked_server_end_at_once_and_are_replaced() -> None:
    world = settled(servers={"s0": 24, "s1": 2}, replicas=1)
    world.hosts["s0"] = Host.REVOKED
    world.servers["s1"] = 24
    world.settle()
    assert [unit.server for unit in world.ready()] == ["s1"]


def one(**fields) -> Seen:
    values = {"id": "i1", "revision": 1, "server_id": "s0", "server_name": "s0", "stage": Stage.DRAIN}
    return Seen(**(values | {"stage_since": 100.0, "created_at": 0.0, "state": InstanceState.READY} | fields))


def steps(seen: Seen, now: float, replicas: int = 0) -> list[tuple[str, Stage]]:
    return [(move.instance_id, move.to) for move in plan(Wanted(replicas, 1), [seen], now, drain_timeout_s=60).moves]


def test_a_draining_instance_waits_until_no_gateway_may_send_to_it() -> None:
    assert steps(one(routable=True), 110.0) == []
    assert steps(one(in_flight=1), 110.0) == []
    assert steps(one(), 110.0) == [("i1", Stage.STOP)]


def test_a_draining_instance_waits_for_reports_newer_than_the_change_of_route() -> None:
    assert steps(one(), 101.0) == []
    assert steps(one(), 102.0) == [("i1", Stage.STOP)]


def test_a_drain_ends_at_its_limit_even_under_requests_and_says_so() -> None:
    assert steps(one(routable=True, in_flight=2), 159.0) == []
    (move,) = plan(Wanted(0, 1), [one(routable=True, in_flight=2)], 160.0, drain_timeout_s=60).moves
    assert move.to is Stage.STOP
    assert move.reason == "2 requests were still running after 60 s"


def test_a_stopped_instance_ends_when_its_agent_says_it_is_gone_or_its_server_is_lost() -> None:
    stopping = one(stage=Stage.STOP)
    assert steps(stopping, 500.0) == []
    assert steps(one(stage=Stage.STOP, gone=True), 500.0) == [("i1", Stage.ENDED)]
    assert steps(one(stage=Stage.STOP, host=Host.LOST), 500.0) == [("i1", Stage.ENDED)]


def test_one_that_never_served_is_stopped_without_a_drain() -> None:
    assert steps(one(stage=Stage.RUN, state=InstanceState.STARTING), 500.0) == [("i1", Stage.STOP)]
    assert steps(one(stage=Stage.RUN), 500.0) == [("i1", Stage.DRAIN)]


def test_scaling_down_takes_broken_ones_first_then_the_least_loaded() -> None:
    seen = [
        one(id="busy", stage=Stage.RUN, in_flight=3),
        one(id="idle", stage=Stage.RUN),
        one(id="broken", stage=Stage.RUN, state=InstanceState.FAILED),
    ]
    assert [move.instance_id for move in plan(Wanted(2, 1), seen, 500.0).moves] == ["broken"]
    assert [move.instance_id for move in plan(Wanted(1, 1), seen, 500.0).moves] == ["broken", "idle"]
