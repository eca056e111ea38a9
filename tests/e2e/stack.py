"""A whole installation, started by `./stokehold up` as a person would, on free ports and in a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
import psutil
import requests

from tests.e2e.network import Machine
from tests.ports import free_port
from tests.waiting import wait_for

SOURCE = Path(__file__).resolve().parents[2]
IMAGE = "stokehold/llama-server:local"
MODEL = "smollm2-135m-instruct"


@dataclass
class Stack:
    """One installation under test."""

    home: Path
    database_url: str = ""
    ports: tuple[int, int, int] = field(default_factory=lambda: (free_port(), free_port(), free_port()))
    runtime: str = "process"
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)
    took_s: float = 0.0
    more: dict[str, str] = field(default_factory=dict)
    """Of the environment."""

    # -------------------------------------------------------------------------------------------- commands

    def command(self, *arguments: str) -> list[str]:
        return [str(SOURCE / "stokehold"), *arguments, "--home", str(self.home)]

    def environment(self) -> dict[str, str]:
        """Ours, without what the test settings put there."""
        drop = ("STOKEHOLD_HOME", "DJANGO_SETTINGS_MODULE", "DATABASE_URL", "REDIS_URL")
        return {**{key: value for key, value in os.environ.items() if key not in drop}, **self.more}

    def run(self, *arguments: str, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def up(self, *options: str) -> subprocess.CompletedProcess[str]:
        """`up --detach` with this stack's ports and database."""
        port, gateway_port, link_port = map(str, self.ports)
        given = ["--port", port, "--gateway-port", gateway_port, "--link-port", link_port, *options]
        if self.database_url:
            given += ["--database-url", self.database_url]
        started = time.monotonic()
        done = self.run("up", "--detach", *given)
        self.took_s = time.monotonic() - started
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def up_with_demo(self) -> subprocess.CompletedProcess[str]:
        options = ["--runtime", self.runtime]
        return self.up(*options, *(["--image", IMAGE] if self.runtime == "docker" else []))

    def status(self, wait_s: float = 0) -> dict[str, Any]:
        done = self.run("status", "--json", *(["--wait", str(wait_s)] if wait_s else []))
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def pid(self, process: str) -> int | None:
        """Pid of a supervised process now."""
        from config.home import Home
        from config.launcher.supervision import Supervisor

        found = {row.name: row.pid for row in Supervisor(Home(self.home)).processes() if row.state == "RUNNING"}
        return found.get(process)

    def stop(self) -> None:
        """Everything of this stack, whatever happened."""
        for other in self.others:
            other.terminate()
        for other in self.others:
            other.wait(timeout=20)
        self.run("down", timeout_s=120)

    def left_behind(self) -> list[str]:
        """Command lines of processes that still have this home in their environment or arguments."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if str(self.home) in " ".join(words) or process.environ().get("STOKEHOLD_HOME") == str(self.home):
                    found.append(" ".join(words))
            except psutil.Error:
                continue
        return found

    # -------------------------------------------------------------------------------------------- faces

    @property
    def credentials(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.home / "credentials.json").read_text())
        return loaded

    @cached_property
    def _session(self) -> requests.Session:
        held = self.credentials
        session = requests.Session()
        login = {"username": held["admin_user"], "password": held["admin_password"]}
        answer = session.post(f"{held['api_base']}/auth/token", json=login, timeout=30)
        assert answer.status_code == 200, answer.text
        session.headers["Authorization"] = f"Bearer {answer.json()['access']}"
        return session

    def get(self, path: str, **query: Any) -> Any:
        answer = self._session.get(f"{self.credentials['api_base']}{path}", params=query, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
        url = f"{self.credentials['api_base']}{path}"
        answer = self._session.post(url, json=body or {}, headers=headers, timeout=30)
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None

    def rows(self, path: str, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(path, page_size=500, **query)["results"]
        return found

    def client(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        options = {"max_retries": 0, "timeout": 60} | options
        return openai.OpenAI(
            base_url=self.credentials["gateway_base"], api_key=key or self.credentials["api_key"], **options
        )

    def deployment(self) -> dict[str, Any]:
        (row,) = self.rows("/deployments/", name=MODEL)
        return row

    def instances(self) -> list[dict[str, Any]]:
        """Live ones."""
        return [row for row in self.rows("/instances/") if row["phase"] != "ended"]

    def ready_instances(self) -> list[dict[str, Any]]:
        return [row for row in self.instances() if row["phase"] == "run" and row["state"] == "ready"]

    def story(self) -> str:
        """Servers, instances and events, for the message of a failure."""
        rows = [*self.rows("/servers/"), *self.rows("/instances/"), *self.rows("/events/")]
        return "\n" + "\n".join(json.dumps(row)[:900] for row in rows)

    # -------------------------------------------------------------------------------------------- a second server

    def start_second_agent(self, folder: Path, machine: Machine | None = None) -> str:
        """Join another agent, with a token, in a folder of its own, here or on `machine`; its server's id."""
        token = self.post("/join-tokens/", {"role": "agent"})["token"]
        folder.mkdir()
        own = self.home / "agent" / "config.json"
        if own.exists():
            (folder / "config.json").write_text(own.read_text())
        known = {row["id"] for row in self.rows("/servers/")}
        master = f"https://{machine.here if machine else '127.0.0.1'}:{self.ports[2]}"
        log = (folder / "log").open("wb")
        agent = [str(SOURCE / "stokehold"), "agent"]
        agent = machine.command(*agent) if machine else agent
        join = [*agent, "join", "--home", str(folder), "--master", master, "--token", token, "--name", "second"]
        subprocess.run(join, check=True, env=self.environment(), stderr=log)
        self.run_second_agent(folder, machine)

        def connected() -> str:
            fresh = [row for row in self.rows("/servers/") if row["id"] not in known and row["status"] == "online"]
            return fresh[0]["id"] if fresh else ""

        return wait_for(connected, within_s=20, what="the second agent is connected")

    def run_second_agent(self, folder: Path, machine: Machine | None = None) -> subprocess.Popen[bytes]:
        """The agent of a home that has joined."""
        command = [sys.executable, "-m", "agent", "run", "--home", str(folder)]
        log = (folder / "log").open("ab")
        process = subprocess.Popen(
            machine.command(*command) if machine else command,
            cwd=SOURCE,
            env=self.environment(),
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        self.others.append(process)
        return process

    def stop_second_agent(self, folder: Path) -> None:
        for other in self.others:
            other.terminate()
            other.wait(timeout=20)
        self.others.clear()
        subprocess.run(
            [sys.executable, "-m", "agent", "stop-engines", "--home", str(folder)],
            cwd=SOURCE,
            env=self.environment(),
            check=True,
            capture_output=True,
        )


class Load:
    """Clients that ask without pause, and what became of each request."""

    def __init__(self, stack: Stack, clients: int = 2) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.failures: list[tuple[float, str]] = []
        self._threads = [threading.Thread(target=self._ask, args=(stack.client(), n)) for n in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self.answered, within_s=20, what="a first answer under load")
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _ask(self, client: openai.OpenAI, number: int) -> None:
        while not self._stop.is_set():
            try:
                text = [
                    chunk.choices[0].delta.content or ""
                    for chunk in client.chat.completions.create(
                        model=MODEL,
                        messages=[{"role": "user", "content": f"Count from {number}"}],
                        max_tokens=12,
                        stream=True,
                    )
                    if chunk.choices
                ]
                if not "".join(text):
                    raise ValueError("an answer without text")
            except (openai.OpenAIError, ValueError) as error:
                with self._lock:
                    self.failures.append((time.monotonic(), repr(error)))
                self._stop.wait(0.1)
            else:
                with self._lock:
                    self.answered += 1

    def goes_on(self, answers: int = 3, within_s: float = 10) -> None:
        """Wait until `answers` more requests were answered."""
        target = self.answered + answers
        wait_for(lambda: self.answered >= target, within_s=within_s, what="requests are answered again")
