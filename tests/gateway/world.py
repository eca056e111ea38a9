"""A gateway in this process with a master and engines around it, ready for requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from gateway.home import Home, own_host_id
from gateway.server import Gateway, Listen
from gateway.service import Settings
from tests.fakes.engine import FakeEngine, running_engine
from tests.gateway.master import FakeMaster, make_feed_key, make_project, make_route, make_target, running_master, until
from wire.feed import FeedKey, FeedRoute, Limits

CHAT = "/v1/chat/completions"


@dataclass
class World:
    master: FakeMaster
    engine: FakeEngine
    gateway: Gateway
    home: Home
    base: str
    key: FeedKey
    secret: str
    client: aiohttp.ClientSession

    def ask(self, **changes: Any) -> dict[str, Any]:
        """A chat request."""
        return {"model": "public", "messages": [{"role": "user", "content": "Say hi"}], **changes}

    def post(self, body: Any = None, path: str = CHAT, *, secret: str | None = None, **options: Any) -> Any:
        headers = {"authorization": f"Bearer {secret or self.secret}", **options.pop("headers", {})}
        if isinstance(body, bytes):
            return self.client.post(self.base + path, data=body, headers=headers, **options)
        return self.client.post(self.base + path, json=body or self.ask(), headers=headers, **options)

    def get(self, path: str, *, secret: str | None = None) -> Any:
        return self.client.get(self.base + path, headers={"authorization": f"Bearer {secret or self.secret}"})

    async def usage(self, requests: int = 1) -> list[Any]:
        """Rows at the master, once they count this many requests."""
        await until(lambda: sum(row.requests for row in self.master.rows) >= requests, what="usage at the master")
        return self.master.rows

    async def route(self, *routes: FeedRoute) -> None:
        await self.push(routes=routes)

    async def push(self, **delta: Any) -> None:
        """Change the feed, and wait until the gateway has it."""
        await self.master.push(**delta)
        await until(lambda: self._has(delta), what="the delta")

    def _has(self, delta: dict[str, Any]) -> bool:
        state = self.gateway.service.state if self.gateway.service else None
        if state is None:
            return False
        return (
            all(state.routes.get(route.id) == route for route in delta.get("routes", ()))
            and all(key.id in state.keys and state.keys[key.id].key == key for key in delta.get("keys", ()))
            and all(state.projects[item.id].project == item for item in delta.get("projects", ()))
            and not any(name in state.routes for name in delta.get("gone_routes", ()))
            and not any(name in state.keys for name in delta.get("gone_keys", ()))
        )

    async def limit(self, key_limits: Limits | None = None, project_limits: Limits | None = None, **key: Any) -> None:
        """Give the key (and its project) limits."""
        self.key = msgspec.structs.replace(self.key, limits=key_limits or Limits(), **key)
        await self.push(keys=(self.key,), projects=(make_project(limits=project_limits or Limits()),))


@asynccontextmanager
async def running_gateway(home: Home, settings: Settings | None = None) -> AsyncIterator[Gateway]:
    identity = home.identity()
    assert identity is not None
    gateway = Gateway(home, identity, Listen("127.0.0.1", 0), settings or Settings(access_log=False))
    task = asyncio.create_task(gateway.run())
    try:
        await asyncio.wait({task, gateway.port}, return_when=asyncio.FIRST_COMPLETED)
        assert gateway.port.done(), "the gateway did not start"
        yield gateway
    finally:
        gateway.stop()
        await task


@asynccontextmanager
async def running_world(path: Path, settings: Settings | None = None) -> AsyncIterator[World]:
    """One engine behind the model `public`, and one key without limits."""
    async with AsyncExitStack() as stack:
        master = await stack.enter_async_context(running_master())
        engine = await stack.enter_async_context(running_engine(FakeEngine()))
        key, secret = make_feed_key()
        route = make_route("public", make_target(engine.port, own_host_id()))
        master.snapshot = msgspec.structs.replace(
            master.snapshot, projects=(make_project(),), keys=(key,), routes=(route,)
        )
        home = Home(path / "gateway")
        master.join(home)
        gateway = await stack.enter_async_context(running_gateway(home, settings))
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        base = f"http://127.0.0.1:{gateway.port.result()}"
        await until(lambda: gateway.service is not None and gateway.service.state is not None, what="the first state")
        yield World(master, engine, gateway, home, base, key, secret, client)
