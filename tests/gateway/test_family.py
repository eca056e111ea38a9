"""Several processes behind one port: replaced without losing a request, and with one tongue towards the master."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.gateway.master import until
from tests.gateway.test_exactness import stack
from wire.feed import Limits

pytestmark = pytest.mark.asyncio


async def test_sighup_replaces_every_process_and_no_request_notices(tmp_path: Path) -> None:
    async with stack(tmp_path, 2, Limits()) as made:
        before = set(made.children())
        asking = True

        async def keep_asking() -> None:
            while asking:
                await made.ask(1)

        clients = [asyncio.create_task(keep_asking()) for _ in range(8)]
        await until(lambda: made.statuses[200] > 20, what="load")
        os.kill(made.gateway.pid, signal.SIGHUP)
        await until(
            lambda: len(made.children()) == 2 and not before & set(made.children()), within_s=60, what="new processes"
        )
        asking = False
        await asyncio.gather(*clients)
        assert set(made.statuses) == {200}
        assert made.broken == 0
        answered = made.statuses[200]
        await until(lambda: made.counted()[200] == answered == len(made.engine.requests), within_s=20, what="all usage")


async def test_the_master_sees_one_gateway_with_the_sum_of_its_processes(tmp_path: Path) -> None:
    async with stack(tmp_path, 3, Limits()) as made:
        made.engine.gate = asyncio.Event()
        clients = asyncio.create_task(made.all_ask(1))
        await until(lambda: made.engine.active > 400, within_s=20, what="requests at the engine")
        await until(
            lambda: made.master.statuses and sum(made.master.statuses[-1].in_flight.values()) == 500, what="the sum"
        )
        assert len(made.master.hellos) == 1
        made.engine.gate.set()
        await clients
        assert made.statuses == {200: 500}
