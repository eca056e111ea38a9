"""The fair queue before full engines: who is next, who is refused, and what cancelling leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.fair import Line, LineFull, Share, Ticket, Turns
from gateway.home import own_host_id
from gateway.service import Settings
from tests.gateway.master import make_feed_key, make_project, make_route, make_target, until
from tests.gateway.test_errors import refused
from tests.gateway.world import World, running_world

LIGHT, HEAVY = Share("light", 1), Share("heavy", 4)


# ------------------------------------------------------------------------------------------------ pure


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def ticket(loop: asyncio.AbstractEventLoop, share: Share) -> Ticket:
    return Ticket(share, loop.create_future())


def taken(line: Line) -> Ticket:
    found = line.pop()
    assert found is not None
    return found


def test_a_project_of_weight_four_gets_four_turns_where_one_of_one_gets_one(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(1000)
    for _ in range(400):
        line.push(ticket(loop, LIGHT))
    for _ in range(400):
        line.push(ticket(loop, HEAVY))
    first = Counter(taken(line).share.project_id for _ in range(100))
    assert first["heavy"] in (79, 80, 81)


def test_who_comes_late_does_not_wait_behind_a_flood(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(1000)
    for _ in range(500):
        line.push(ticket(loop, Share("flood", 1)))
    for _ in range(50):
        line.pop()
    late = ticket(loop, Share("late", 1))
    line.push(late)
    assert late in (taken(line), taken(line))


def test_not_waiting_saves_no_credit(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(1000)
    rare, steady = Share("rare", 1), Share("steady", 1)
    line.push(ticket(loop, rare))
    for _ in range(100):
        line.push(ticket(loop, steady))
    for _ in range(60):
        line.pop()
    for _ in range(20):
        line.push(ticket(loop, rare))
    assert Counter(taken(line).share.project_id for _ in range(20))["rare"] in (9, 10, 11)


def test_a_flood_cannot_fill_the_line(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(10)
    flood = [ticket(loop, Share("flood", 1)) for _ in range(10)]
    for one in flood:
        assert line.push(one) is None
    with pytest.raises(LineFull):
        line.push(ticket(loop, Share("flood", 1)))
    assert line.push(ticket(loop, Share("other", 1))) is flood[-1]
    assert len(line) == 10
    for _ in range(4):
        line.push(ticket(loop, Share("other", 1)))
    with pytest.raises(LineFull):  # both have half
        line.push(ticket(loop, Share("other", 1)))


def test_a_cancelled_request_uses_up_no_turn(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(100)
    gone = [ticket(loop, LIGHT) for _ in range(50)]
    for one in gone:
        line.push(one)
    line.push(ticket(loop, HEAVY))
    for one in gone:
        assert line.discard(one)
        assert not line.discard(one)
    line.push(ticket(loop, LIGHT))
    assert {taken(line).share, taken(line).share} == {LIGHT, HEAVY}
    assert line.pop() is None
    assert len(line) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=60), st.integers(1, 12))
def test_nothing_is_lost_or_given_twice_and_each_project_keeps_its_order(
    steps: list[tuple[str, int]], longest: int
) -> None:
    loop = asyncio.new_event_loop()
    try:
        line, waiting = Line(longest), list[Ticket]()
        for project, action in steps:
            if action == 0:
                one = ticket(loop, Share(project, 1 + "abc".index(project)))
                with contextlib.suppress(LineFull):
                    out = line.push(one)
                    if out is not None:
                        waiting.remove(out)
                    waiting.append(one)
            elif action == 1 and waiting:
                assert line.discard(waiting.pop(len(waiting) // 2))
            elif (found := line.pop()) is not None:
                same = [one for one in waiting if one.share.project_id == found.share.project_id]
                assert found is same[0]
                waiting.remove(found)
            assert len(line) == len(waiting) <= longest
    finally:
        loop.close()


# ------------------------------------------------------------------------------------------------ turns


def turns(room: int | None, *, longest: int = 100, most_s: float = 10.0) -> Turns:
    return Turns(lambda route_id: room, longest=longest, most_s=most_s)


@pytest.mark.asyncio
async def test_nobody_waits_where_slots_are_not_known() -> None:
    gate = turns(None)
    assert all(gate.try_enter("r") for _ in range(1000))


@pytest.mark.asyncio
async def test_no_newcomer_passes_those_who_wait() -> None:
    gate = turns(1)
    assert gate.try_enter("r")
    waiter = asyncio.create_task(gate.wait("r", LIGHT)) if not gate.try_enter("r") else None
    await asyncio.sleep(0)
    assert waiter is not None
    gate.leave("r")
    assert not gate.try_enter("r")  # the waiter has it, though it has not run yet
    await waiter
    gate.leave("r")
    assert gate.try_enter("r")


@pytest.mark.asyncio
async def test_waiting_is_bounded_in_time() -> None:
    gate = turns(1, most_s=0.05)
    assert gate.try_enter("r")
    assert not gate.try_enter("r")
    with pytest.raises(GatewayError) as error:
        await gate.wait("r", LIGHT)
    assert (error.value.status, error.value.code) == (429, "engine_overloaded")
    assert error.value.retry_after_s
    assert len(gate) == 0


@pytest.mark.asyncio
async def test_however_requests_are_cancelled_the_room_is_never_passed_and_comes_back_whole() -> None:
    room, chance = 3, random.Random(5)
    gate, inside, most = turns(room, most_s=0.02), 0, 0

    async def one() -> None:
        nonlocal inside, most
        if not gate.try_enter("r"):
            await gate.wait("r", Share(chance.choice("abc"), chance.randint(1, 4)))
        inside += 1
        most = max(most, inside)
        try:
            await asyncio.sleep(chance.random() * 0.004)
        finally:
            inside -= 1
            gate.leave("r")

    tasks = [asyncio.create_task(one()) for _ in range(400)]
    while not all(task.done() for task in tasks):
        for task in chance.sample(tasks, 20):
            task.cancel()
        await asyncio.sleep(0.001)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, GatewayError | asyncio.CancelledError) for result in results)
    assert most == room
    assert [gate.try_enter("r") for _ in range(room + 1)] == [True] * room + [False]


# ------------------------------------------------------------------------------------------------ whole gateway


@asynccontextmanager
async def full_engine(path: Path, slots: int = 1, **settings: Any) -> AsyncIterator[World]:
    """An engine of so many slots, whose answers wait for `engine.gate`."""
    async with running_world(path, Settings(access_log=False, **settings)) as world:
        world.engine.gate = asyncio.Event()
        await set_slots(world, slots)
        yield world


async def set_slots(world: World, slots: int) -> None:
    await world.route(make_route("public", make_target(world.engine.port, own_host_id(), slots=slots)))


def waiting(world: World) -> int:
    service = world.gateway.service
    assert service is not None
    return len(service.turns)


async def status(world: World, secret: str | None = None) -> int:
    async with world.post(secret=secret) as response:
        await response.read()
        return int(response.status)


@pytest.mark.asyncio
async def test_requests_to_a_full_engine_wait_instead_of_failing(tmp_path: Path) -> None:
    async with full_engine(tmp_path, slots=2) as world:
        tasks = [asyncio.create_task(status(world)) for _ in range(10)]
        await until(lambda: (world.engine.active, waiting(world)) == (2, 8), what="two inside and eight that wait")
        async with world.get("/metrics") as response:
            assert "stokehold_gateway_waiting_requests 8.0" in await response.text()
        world.engine.gate.set()  # type: ignore[union-attr]
        assert await asyncio.gather(*tasks) == [200] * 10
        assert len(world.engine.requests) == 10


@pytest.mark.asyncio
async def test_a_flood_of_one_project_does_not_keep_another_waiting(tmp_path: Path) -> None:
    async with full_engine(tmp_path) as world:
        other, secret = make_feed_key(project_id="p2")
        await world.push(keys=(other,), projects=(make_project(id="p2", priority=4),))
        flood = [asyncio.create_task(status(world)) for _ in range(30)]
        await until(lambda: waiting(world) == 29, what="a flood")
        late = [asyncio.create_task(status(world, secret)) for _ in range(4)]
        await until(lambda: waiting(world) == 33, what="the others")
        world.engine.gate.set()  # type: ignore[union-attr]
        assert await asyncio.gather(*late) == [200] * 4
        assert sum(task.done() for task in flood) <= 10
        assert await asyncio.gather(*flood) == [200] * 30


@pytest.mark.asyncio
async def test_a_full_line_and_a_long_wait_end_with_429_and_a_time(tmp_path: Path) -> None:
    async with full_engine(tmp_path, queue_length=1, queue_s=0.3) as world:
        first = asyncio.create_task(status(world))
        await until(lambda: world.engine.active == 1, what="the first at the engine")
        second = asyncio.create_task(refused(world.post()))
        await until(lambda: waiting(world) == 1, what="one that waits")
        for answer in (await refused(world.post()), await second):
            code, error, headers = answer
            assert (code, error["code"]) == (429, "engine_overloaded")
            assert int(headers["retry-after"]) >= 1
        world.engine.gate.set()  # type: ignore[union-attr]
        assert await first == 200


@pytest.mark.asyncio
async def test_a_client_that_leaves_the_queue_takes_no_slot(tmp_path: Path) -> None:
    async with full_engine(tmp_path) as world:
        first = asyncio.create_task(status(world))
        await until(lambda: world.engine.active == 1, what="the first at the engine")
        gone = [asyncio.create_task(status(world)) for _ in range(5)]
        await until(lambda: waiting(world) == 5, what="five that wait")
        for task in gone:
            task.cancel()
        await until(lambda: waiting(world) == 0, what="that they are gone")
        world.engine.gate.set()  # type: ignore[union-attr]
        assert await first == 200
        assert await status(world) == 200
        assert len(world.engine.requests) == 2


@pytest.mark.asyncio
async def test_an_instance_more_lets_those_who_wait_in_at_once(tmp_path: Path) -> None:
    async with full_engine(tmp_path) as world:
        tasks = [asyncio.create_task(status(world)) for _ in range(4)]
        await until(lambda: waiting(world) == 3, what="three that wait")
        await set_slots(world, 3)
        await until(lambda: (world.engine.active, waiting(world)) == (3, 1), what="two more inside")
        world.engine.gate.set()  # type: ignore[union-attr]
        assert await asyncio.gather(*tasks) == [200] * 4


@pytest.mark.asyncio
async def test_who_waited_for_a_route_that_goes_is_told_so(tmp_path: Path) -> None:
    async with full_engine(tmp_path) as world:
        first = asyncio.create_task(status(world))
        await until(lambda: world.engine.active == 1, what="the first at the engine")
        second = asyncio.create_task(refused(world.post()))
        await until(lambda: waiting(world) == 1, what="one that waits")
        await world.push(gone_routes=("public",))
        code, error, _ = await second
        assert (code, error["code"]) == (404, "model_not_found")
        world.engine.gate.set()  # type: ignore[union-attr]
        await first


@pytest.mark.asyncio
async def test_engine_faults_and_cuts_give_their_slot_back(tmp_path: Path) -> None:
    async with full_engine(tmp_path) as world:
        world.engine.gate = None
        world.engine.fail, world.engine.fail_times = (500, {"error": {"message": "broken"}}), 3
        assert [await status(world) for _ in range(3)] == [502] * 3
        world.engine.cut_after = 1
        with contextlib.suppress(Exception):
            async with world.post(world.ask(stream=True)) as response:
                await response.read()
        world.engine.cut_after = None
        assert [await status(world) for _ in range(3)] == [200] * 3
