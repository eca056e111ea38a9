"""A project's guard, a real service over HTTP: what it lets pass, changes and stops, and what happens without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from tests.gateway.master import make_project, until
from tests.gateway.test_errors import refused
from tests.gateway.world import World
from tests.ports import free_port
from wire.feed import Guard, Limits

pytestmark = pytest.mark.asyncio


@dataclass
class Sentry:
    """The service. `answer` is its JSON, its text, or a status; `delay_s` comes before."""

    url: str = ""
    answer: Any = None
    delay_s: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        await asyncio.sleep(self.delay_s)
        if isinstance(self.answer, int):
            return web.Response(status=self.answer, headers={"location": "/elsewhere"})
        if isinstance(self.answer, str):
            return web.Response(text=self.answer)
        return web.json_response(self.answer)


@pytest_asyncio.fixture
async def sentry() -> AsyncIterator[Sentry]:
    made, app, port = Sentry(answer={"action": "allow"}), web.Application(), free_port()
    app.router.add_post("/check", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    made.url = f"http://127.0.0.1:{port}/check"
    try:
        yield made
    finally:
        await runner.cleanup()


async def guard(world: World, sentry: Sentry, limits: Limits | None = None, **options: Any) -> None:
    rules = Guard(url=sentry.url, **options)
    await world.push(projects=(make_project(guard=rules, limits=limits or Limits()),))


async def test_it_sees_what_is_asked_and_by_whom_and_lets_it_pass(world: World, sentry: Sentry) -> None:
    await guard(world, sentry)
    async with world.post(headers={"x-request-id": "mine"}) as response:
        assert response.status == 200
    [asked] = sentry.asked
    assert asked["request"] == world.ask()
    assert (asked["project"], asked["model"], asked["endpoint"]) == (
        {"id": "p1", "name": "project"},
        "public",
        "/v1/chat/completions",
    )
    assert (asked["request_id"], asked["key"]) == ("mine", f"sk-stk-{world.key.id}")
    assert world.secret not in str(asked)


async def test_what_it_stops_never_reaches_an_engine(world: World, sentry: Sentry) -> None:
    await guard(world, sentry)
    sentry.answer = {"action": "block", "message": "no poems today"}
    status, error, _ = await refused(world.post())
    assert (status, error["code"], error["type"]) == (400, "content_policy_violation", "invalid_request_error")
    assert "no poems today" in error["message"]
    assert not world.engine.requests
    [row] = await world.usage()
    assert (row.status, row.prompt_tokens) == (400, 0)


async def test_what_it_changes_goes_to_the_engine_and_is_what_quotas_count(world: World, sentry: Sentry) -> None:
    await guard(world, sentry, Limits(tokens_per_minute=1000))
    changed = {**world.ask(messages=[{"role": "user", "content": "Say nothing"}]), "max_tokens": 900}
    sentry.answer = {"action": "replace", "request": changed}
    async with world.post(world.ask(max_tokens=5)) as response:
        assert response.status == 200
    assert world.engine.requests[0]["messages"] == changed["messages"]
    world.engine.gate = asyncio.Event()
    waiting = asyncio.create_task(_status(world))
    await until(lambda: len(world.engine.requests) == 2, what="the engine")
    assert await _status(world) == 429  # 900 are reserved, not 5
    world.engine.gate.set()
    assert await waiting == 200


@pytest.mark.parametrize(
    "answer",
    [500, 302, "text", [], {}, {"action": "maybe"}, {"action": "replace"}, {"action": "replace", "request": {"x": 1}}],
)
async def test_without_its_word_a_request_waits_or_goes_on_as_the_project_says(
    world: World, sentry: Sentry, answer: Any
) -> None:
    sentry.answer = answer
    await guard(world, sentry)
    status, error, headers = await refused(world.post())
    assert (status, error["code"], headers["retry-after"]) == (503, "guard_unavailable", "5")
    assert not world.engine.requests
    await guard(world, sentry, fail_open=True)
    assert await _status(world) == 200
    assert "unguarded_requests_total 1.0" in await _metrics(world)


async def test_another_model_is_no_answer(world: World, sentry: Sentry) -> None:
    await guard(world, sentry)
    sentry.answer = {"action": "replace", "request": world.ask(model="other")}
    assert await _status(world) == 503


async def test_one_that_is_late_or_away_does_not_hold_requests_for_ever(world: World, sentry: Sentry) -> None:
    sentry.delay_s = 60
    await guard(world, sentry, timeout_ms=100)
    assert await _status(world) == 503
    away = msgspec.structs.replace(Guard(url=f"http://127.0.0.1:{free_port()}/"), fail_open=True)
    await world.push(projects=(make_project(guard=away),))
    assert await _status(world) == 200


async def test_a_client_that_leaves_does_not_wait_for_it(world: World, sentry: Sentry) -> None:
    sentry.delay_s = 60
    await guard(world, sentry, timeout_ms=60_000)
    asking = asyncio.create_task(_status(world))
    await until(lambda: bool(sentry.asked), what="the guard")
    asking.cancel()
    [row] = await world.usage()
    assert row.status == 499


async def _status(world: World) -> int:
    async with world.post(world.ask(max_tokens=200)) as response:
        await response.read()
        return int(response.status)


async def _metrics(world: World) -> str:
    async with world.get("/metrics") as response:
        return str(await response.text())
