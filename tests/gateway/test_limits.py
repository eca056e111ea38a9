"""Quotas as a client meets them."""

from __future__ import annotations

import asyncio

import pytest

from tests.gateway.master import until
from tests.gateway.test_errors import refused
from tests.gateway.world import World
from wire.feed import Limits, Used

pytestmark = pytest.mark.asyncio


async def statuses(world: World, count: int, **changes: object) -> list[int]:
    async def one() -> int:
        async with world.post(world.ask(**changes)) as response:
            await response.read()
            return int(response.status)

    return sorted(await asyncio.gather(*(one() for _ in range(count))))


async def test_of_fifty_requests_at_once_exactly_the_limit_gets_through(world: World) -> None:
    await world.limit(Limits(requests_per_minute=7))
    assert await statuses(world, 50) == [200] * 7 + [429] * 43
    status, error, headers = await refused(world.post())
    assert (status, error["code"], error["type"]) == (429, "rate_limit_exceeded", "requests")
    assert 0 < int(headers["retry-after"]) <= 61
    assert headers["x-ratelimit-limit-requests"] == "7"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"][-1] == "s"
    assert len(world.engine.requests) == 7


async def test_tokens_are_exact_under_concurrency(world: World) -> None:
    await world.limit(None, Limits(tokens_per_minute=100))
    got = await statuses(world, 30, max_tokens=20)
    assert got.count(200) >= 3
    assert got.count(429) >= 20
    _, error, headers = await refused(world.post(world.ask(max_tokens=99)))
    assert "of this project" in error["message"]
    assert headers["x-ratelimit-limit-tokens"] == "100"


async def test_parallel_requests_are_held_to_the_limit_and_come_back(world: World) -> None:
    await world.limit(Limits(parallel_requests=3))
    world.engine.gate = asyncio.Event()
    running = [asyncio.create_task(world.post().__aenter__()) for _ in range(3)]
    await until(lambda: world.engine.active == 3, what="three running requests")
    assert (await refused(world.post()))[0] == 429
    world.engine.gate.set()
    for response in await asyncio.gather(*running):
        response.release()
    assert await statuses(world, 3) == [200, 200, 200]


async def test_a_used_up_day_is_an_insufficient_quota(world: World) -> None:
    await world.limit(Limits(tokens_per_day=100), used=Used(tokens_today=100))
    status, error, headers = await refused(world.post())
    assert (status, error["code"], error["type"]) == (429, "insufficient_quota", "insufficient_quota")
    assert 0 < int(headers["retry-after"]) <= 86400
    await world.limit(Limits(tokens_per_month=100), used=Used(tokens_this_month=90))
    assert (await refused(world.post(world.ask(max_tokens=50))))[1]["code"] == "insufficient_quota"


async def test_a_failed_request_gives_its_tokens_back(world: World) -> None:
    await world.limit(Limits(tokens_per_day=200))
    world.engine.fail = (400, {"error": {"message": "no"}})
    for _ in range(5):
        assert (await refused(world.post(world.ask(max_tokens=150))))[0] == 400
    world.engine.fail = None
    assert await statuses(world, 1, max_tokens=150) == [200]


async def test_without_limits_there_are_no_limit_headers(world: World) -> None:
    async with world.post() as response:
        assert not [name for name in response.headers if name.lower().startswith("x-ratelimit")]


async def test_a_day_that_is_only_reserved_is_to_be_asked_for_again_soon(world: World) -> None:
    await world.limit(Limits(tokens_per_day=1000))
    world.engine.gate = asyncio.Event()
    running = asyncio.create_task(world.post(world.ask(max_tokens=900)).__aenter__())
    await until(lambda: world.engine.active == 1, what="a running request")
    status, error, headers = await refused(world.post(world.ask(max_tokens=900)))
    assert (status, error["code"]) == (429, "rate_limit_exceeded")
    assert int(headers["retry-after"]) <= 5
    world.engine.gate.set()
    (await running).release()
    status, error, headers = await refused(world.post(world.ask(max_tokens=2000)))
    assert (status, error["code"]) == (429, "rate_limit_exceeded")
    assert "retry-after" not in headers
