"""A master with a gateway of its own and an engine behind it: what a request passes on its whole way.

The master and the gateway are real processes over the test's own database; the engine is `FakeEngine`, in a thread.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from django.utils import timezone

from config.home import SOURCE_DIR
from fleet.join import create_join_token
from gateway.home import own_host_id
from tests.factories import make_deployment, make_facts, make_instance, make_server
from tests.fakes.engine import FakeEngine, running_engine
from tests.master import Master
from tests.ports import free_port
from tests.waiting import wait_for


class Served:
    """The model `chat`, ready behind a gateway that the master knows at `gateway_url`."""

    def __init__(self, folder: Path, master: Master, engine: FakeEngine, gateway_port: int) -> None:
        self.folder = folder
        self.master = master
        self.engine = engine
        self._port = gateway_port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def deploy(self, name: str = "chat") -> None:
        """A deployment with the engine as its ready instance, on this very host."""
        server = make_server(facts=make_facts(host_id=own_host_id()))
        make_instance(deployment=make_deployment(name=name), server=server, port=self.engine.port)

    def start_gateway(self) -> None:
        """Join it at first, and wait until it is ready."""
        command = [
            sys.executable,
            "-m",
            "gateway",
            "run",
            "--home",
            str(self.folder / "gateway"),
            "--host",
            "127.0.0.1",
        ]
        command += ["--port", str(self._port)]
        if not (self.folder / "gateway").exists():
            token = create_join_token(role="gateway", now=timezone.now())
            command += ["--master", self.master.link_url, "--token", token]
        with (self.folder / "gateway.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=SOURCE_DIR, stdout=log, stderr=log)
        wait_for(self._ready, within_s=30, what=f"the gateway at {self.gateway_url}")

    def stop_gateway(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)
            self._process = None

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the gateway ended:\n{(self.folder / 'gateway.log').read_text()[-3000:]}")
        try:
            return requests.get(f"{self.gateway_url}/readyz", timeout=2).status_code == 200
        except requests.ConnectionError:
            return False


@contextmanager
def serving(folder: Path, master: Master, engine: FakeEngine | None = None) -> Iterator[Served]:
    """All three parts, running. `master` is not started yet: it is told where the gateway is."""
    port = free_port()
    master.environment["STOKEHOLD_GATEWAY_URL"] = f"http://127.0.0.1:{port}/v1"
    with engine_in_thread(engine or FakeEngine()) as running:
        served = Served(folder, master, running, port)
        master.start()
        try:
            served.deploy()
            served.start_gateway()
            yield served
        finally:
            served.stop_gateway()
            master.stop()


@contextmanager
def engine_in_thread(engine: FakeEngine) -> Iterator[FakeEngine]:
    """An engine for a test that has no event loop."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stopped: asyncio.Event

    async def serve() -> None:
        nonlocal stopped
        stopped = asyncio.Event()
        async with running_engine(engine):
            ready.set()
            await stopped.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(timeout=10), "the engine did not start"
        yield engine
    finally:
        loop.call_soon_threadsafe(lambda: stopped.set())
        thread.join(timeout=10)
        loop.close()
