"""Aliases, canaries, fallbacks and providers outside, through a whole gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from gateway.home import own_host_id
from tests.fakes.engine import FakeEngine, running_engine
from tests.gateway.master import make_route, make_target
from tests.gateway.test_errors import refused
from tests.gateway.world import World
from tests.ports import free_port
from wire.feed import FeedRoute, Provider, Split

pytestmark = pytest.mark.asyncio


async def text_of(world: World, **changes: Any) -> str:
    async with world.post(world.ask(**changes)) as response:
        answer = await response.json()
        assert response.status == 200, answer
        assert answer["model"] == changes.get("model", "public")
        return str(answer["choices"][0]["message"]["content"])


def leaf(name: str, engine: FakeEngine, **changes: Any) -> FeedRoute:
    return make_route(name, make_target(engine.port, own_host_id(), engine_model=name), listed=False, **changes)


@asynccontextmanager
async def blue_and_green() -> AsyncIterator[tuple[FakeEngine, FakeEngine]]:
    async with (
        running_engine(FakeEngine(words=("blue",))) as blue,
        running_engine(FakeEngine(words=("green",))) as green,
    ):
        yield blue, green


async def test_a_canary_gets_its_share_under_the_public_name(world: World) -> None:
    async with blue_and_green() as (blue, green):
        splits = (Split(route="blue", weight=3), Split(route="green", weight=1))
        await world.route(make_route("public", splits=splits), leaf("blue", blue), leaf("green", green))
        texts = [await text_of(world) for _ in range(80)]
        assert {"blue", "green"} == set(texts)
        assert 5 <= texts.count("green") <= 40
        assert {item["model"] for item in green.requests} == {"green"}
        await world.route(make_route("public", splits=(Split(route="green", weight=1),)))  # switched over
        assert {await text_of(world) for _ in range(10)} == {"green"}
        assert {row.model for row in await world.usage(90)} == {"public"}


async def test_what_is_not_listed_cannot_be_asked_for(world: World) -> None:
    async with blue_and_green() as (blue, _):
        await world.route(make_route("public", splits=(Split(route="blue", weight=1),)), leaf("blue", blue))
        assert (await refused(world.post(world.ask(model="blue"))))[1]["code"] == "model_not_found"
        async with world.get("/v1/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["public"]


@pytest.mark.parametrize("fault", ["away", "loading", "500", "overloaded"])
async def test_a_fallback_answers_before_the_first_byte(world: World, fault: str) -> None:
    async with blue_and_green() as (blue, green):
        if fault != "away":
            status = {"loading": 503, "500": 500, "overloaded": 429}[fault]
            blue.fail = (status, {"error": {"message": "no"}})
        target = make_target(free_port() if fault == "away" else blue.port, own_host_id(), instance_id="i-blue")
        await world.route(make_route("public", target, fallbacks=("green",)), leaf("green", green))
        assert await text_of(world) == "green"
        async with world.post(world.ask(stream=True)) as response:
            assert b"green" in await response.read()
        assert {row.status for row in await world.usage(2)} == {200}


async def test_a_fault_of_the_client_does_not_go_to_the_fallback(world: World) -> None:
    async with blue_and_green() as (blue, green):
        blue.fail = (400, {"error": {"message": "bad", "type": "invalid_request_error"}})
        await world.route(leaf("blue", blue), leaf("green", green))
        await world.route(make_route("public", *leaf("blue", blue).targets, fallbacks=("green",)))
        assert (await refused(world.post()))[0] == 400
        assert not green.requests


async def test_a_route_whose_shares_are_all_gone_is_not_ready(world: World) -> None:
    await world.route(make_route("public", splits=(Split(route="nowhere", weight=1),), reason="nothing is deployed"))
    status, error, headers = await refused(world.post())
    assert (status, error["code"]) == (503, "model_not_ready")
    assert "nothing is deployed" in error["message"]
    assert "retry-after" in headers


async def test_a_provider_outside_gets_its_own_key_path_and_model(world: World) -> None:
    seen: list[tuple[str, str, str]] = []

    async def handle(request: web.Request) -> web.Response:
        body = await request.json()
        seen.append((request.path, request.headers["authorization"], body["model"]))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "from outside"}}
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        return web.json_response({"id": "c", "model": body["model"], "choices": [choice], "usage": usage})

    app = web.Application()
    app.router.add_post("/api/openai/v1/chat/completions", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        provider = Provider(base_url=f"http://127.0.0.1:{port}/api/openai/v1/", api_key="outside-key", model="big-1")
        await world.route(make_route("public", fallbacks=("outside",)), make_route("outside", provider=provider))
        assert await text_of(world) == "from outside"
        assert seen == [("/api/openai/v1/chat/completions", "Bearer outside-key", "big-1")]
        [row] = await world.usage()
        assert (row.model, row.prompt_tokens, row.completion_tokens) == ("public", 2, 3)
    finally:
        await runner.cleanup()


async def test_a_provider_that_refuses_our_key_is_our_fault_not_the_clients(world: World) -> None:
    async with running_engine(FakeEngine(fail=(401, {"error": {"message": "bad key outside-key"}}))) as engine:
        provider = Provider(base_url=f"http://127.0.0.1:{engine.port}/v1", api_key="outside-key", model="big-1")
        await world.route(make_route("public", provider=provider))
        status, error, _ = await refused(world.post())
        assert status == 502
        assert "outside-key" not in error["message"]
