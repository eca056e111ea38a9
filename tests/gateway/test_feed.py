"""State from the master, and life without it."""

from __future__ import annotations

import asyncio
import stat
import time
from pathlib import Path

import aiohttp
import msgspec
import pytest

from gateway.home import Home
from tests.gateway.master import make_feed_key, make_project, running_master, until
from tests.gateway.test_errors import refused
from tests.gateway.world import CHAT, World, running_gateway
from wire.messages import Refused

pytestmark = pytest.mark.asyncio


async def test_a_revoked_key_stops_within_a_second(world: World) -> None:
    async with world.post() as response:
        assert response.status == 200
    await world.master.push(keys=(msgspec.structs.replace(world.key, active=False),))
    started = time.monotonic()
    while True:
        async with world.post() as response:
            if response.status == 401:
                break
        assert time.monotonic() - started < 1.0


async def test_a_key_that_is_gone_is_unknown(world: World) -> None:
    await world.push(gone_keys=(world.key.id,))
    assert "Incorrect" in (await refused(world.post()))[1]["message"]


async def test_requests_go_on_while_the_master_is_away_and_usage_comes_later_once(world: World) -> None:
    port = world.master.port
    await world.master.stop()
    for _ in range(5):
        async with world.post() as response:
            assert response.status == 200
    async with world.client.get(world.base + "/readyz") as response:
        assert response.status == 200
    assert not world.master.rows
    await world.master.start(port)
    await until(lambda: sum(row.requests for row in world.master.rows) == 5, within_s=10, what="the usage")


async def test_a_restart_with_the_master_away_serves_from_disk(world: World) -> None:
    state = world.home.state_file
    await until(state.exists, what="the state on disk")
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    await world.master.stop()
    async with running_gateway(world.home) as second:
        base = f"http://127.0.0.1:{second.port.result()}"
        headers = {"authorization": f"Bearer {world.secret}"}
        async with world.client.post(base + CHAT, json=world.ask(), headers=headers) as response:
            assert response.status == 200


async def test_without_master_and_disk_it_lives_but_is_not_ready(tmp_path: Path) -> None:
    async with running_master() as master:
        home = Home(tmp_path)
        master.join(home)
        await master.stop()
        home.state_file.write_text("{damaged")
        async with running_gateway(home) as gateway, aiohttp.ClientSession() as client:
            base = f"http://127.0.0.1:{gateway.port.result()}"
            async with client.get(base + "/healthz") as response:
                assert response.status == 200
            async with client.get(base + "/readyz") as response:
                assert response.status == 503
            status, error, headers = await refused(client.post(base + CHAT, json={}))
            assert (status, error["code"]) == (503, "gateway_starting")
            assert headers["retry-after"]


async def test_a_revoked_gateway_serves_no_more_and_forgets_what_it_knew(world: World) -> None:
    await until(lambda: world.home.state() is not None, what="the state on disk")
    world.master.refuse = Refused(code="revoked", message="revoked", final=True)
    port = world.master.port
    await world.master.stop()
    await world.master.start(port)
    await until(lambda: world.gateway.service is not None and world.gateway.service.state is None, what="the end")
    status, error, _ = await refused(world.post())
    assert (status, error["code"]) == (503, "gateway_starting")
    assert not world.home.state_file.exists()


async def test_a_master_that_refuses_is_not_hammered(tmp_path: Path) -> None:
    async with running_master() as master:
        home = Home(tmp_path)
        master.join(home)
        master.refuse = Refused(code="revoked", message="revoked", final=True)
        asked = 0
        async with running_gateway(home) as gateway:
            await asyncio.sleep(1.5)
            assert gateway.service is not None
            assert gateway.service.state is None
            assert not master.statuses
            asked = len(master.hellos)
        assert asked <= 1


async def test_a_batch_that_is_not_acknowledged_is_sent_again_under_its_id(world: World) -> None:
    world.master.acknowledges = False
    async with world.post() as response:
        await response.read()
    await until(lambda: world.master.received, what="the batch")
    port = world.master.port
    await world.master.stop()
    world.master.acknowledges = True
    await world.master.start(port)
    await until(lambda: world.master.batches, within_s=10, what="the batch again")
    assert len({batch.batch_id for batch in world.master.received}) == 1
    assert len(world.master.received) >= 2
    await until(lambda: not list(world.home.journal.glob("*.batch")), what="an empty journal")


async def test_a_snapshot_after_a_reconnect_replaces_everything(world: World) -> None:
    port = world.master.port
    await world.master.stop()
    key, secret = make_feed_key(project_id="p2")
    world.master.snapshot = msgspec.structs.replace(
        world.master.snapshot, keys=(key,), projects=(make_project(id="p2"),)
    )
    await world.master.start(port)
    await until(lambda: world.gateway.service.state.keys.keys() == {key.id}, within_s=10)  # type: ignore[union-attr]
    assert (await refused(world.post()))[0] == 401
    async with world.post(secret=secret) as response:
        assert response.status == 200
