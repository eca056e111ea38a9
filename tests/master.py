"""A real master for tests: daphne in its own process and home, on free ports, over the test's own database."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import requests
from django.db import connection, connections

from config.home import SOURCE_DIR, Home
from tests.ports import free_port
from tests.waiting import wait_for

Result = TypeVar("Result")


class Master:
    """One daphne with a plain port and a TLS port, as `up` starts it. Without a channel layer unless one is started."""

    def __init__(self, folder: Path, database_url: str, channel_url: str = "") -> None:
        self.home = Home(folder)
        self.port, self.link_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.link_url = f"https://127.0.0.1:{self.link_port}"
        self.home.save_options({"port": self.port, "link_port": self.link_port})
        self.environment = os.environ | {
            "STOKEHOLD_HOME": str(folder),
            "DATABASE_URL": database_url,
            "REDIS_URL": channel_url or f"unix://{folder}/no-such.sock",
            "DJANGO_SETTINGS_MODULE": "config.settings.embedded",
        }
        self._log = folder / "master.log"
        self._process: subprocess.Popen[bytes] | None = None

    def make_ca(self) -> None:
        """What `up` does before it starts daphne."""
        program = "import django; django.setup(); from fleet.ca import ensure_ca_exists; ensure_ca_exists()"
        subprocess.run([sys.executable, "-c", program], env=self.environment, cwd=SOURCE_DIR, check=True)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        if not (self.home.ca / "master.pem").exists():
            self.make_ca()
        plain = f"tcp:port={self.port}:interface=127.0.0.1"
        key, certificate = self.home.ca / "master.key", self.home.ca / "master.pem"
        tls = f"ssl:port={self.link_port}:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
        command = [sys.executable, "-m", "daphne", "-e", plain, "-e", tls, "config.asgi:application"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self.environment, cwd=SOURCE_DIR, stdout=log, stderr=log)
        try:
            wait_for(self._answers, within_s=60, what=f"the master at {self.url}")
        except BaseException:
            self.stop()
            raise

    def stop(self, how: int = signal.SIGTERM) -> None:
        """Stop it, and wait for its end."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def cpu_s(self) -> float:
        """Processor time it has used."""
        import psutil

        assert self._process is not None
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the master ended:\n{self.log()[-4000:]}")
        try:
            return requests.get(f"{self.url}/healthz", timeout=2).status_code == 200
        except requests.ConnectionError:
            return False


def test_database_url() -> str:
    """`DATABASE_URL` of the database that the tests of this process use."""
    chosen = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{chosen['NAME']}"
    user, host, port = chosen["USER"], quote(chosen["HOST"], safe=""), chosen["PORT"]  # a socket's folder, too
    password = f":{chosen['PASSWORD']}" if chosen["PASSWORD"] else ""
    return f"postgres://{user}{password}@{host}:{port or 5432}/{chosen['NAME']}"


test_database_url.__test__ = False  # type: ignore[attr-defined]


async def in_database(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Result of ORM code, from a test's coroutine; committed when it is there."""

    def call() -> Result:
        try:
            return function(*args, **kwargs)
        finally:
            connections.close_all()

    return await asyncio.to_thread(call)


async def until(condition: Callable[[], Any], *, within_s: float = 10.0, what: str = "") -> Any:
    """First true result of a condition on the database; AssertionError when there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        result = await in_database(condition)
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what or condition}")
        await asyncio.sleep(0.03)


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
