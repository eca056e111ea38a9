"""`up --no-demo`, twice, `status`, `logs` and `down`, with a home whose name has a space."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.home import Home
from config.launcher.supervision import Supervisor
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("launcher") / "with space")
    try:
        made.up("--no-demo")
        yield made
    finally:
        made.stop()


def test_credentials_are_complete_and_private(stack: Stack) -> None:
    held = stack.credentials
    assert stat.S_IMODE((stack.home / "credentials.json").stat().st_mode) == 0o600
    assert list(held) == ["admin_url", "admin_user", "admin_password", "api_base", "gateway_base", "api_key", "model"]
    assert held["api_key"] is None
    assert stack.rows("/servers/")[0]["status"] == "online"  # they work


def test_a_second_up_is_quick_and_prints_the_block_again(stack: Stack) -> None:
    pids = {name: stack.pid(name) for name in ("master", "agent", "gateway")}
    again = stack.up("--no-demo")
    assert stack.credentials["admin_password"] in again.stdout
    assert {name: stack.pid(name) for name in pids} == pids
    assert stack.took_s < 10


def test_a_second_up_with_other_options_says_to_go_down_first(stack: Stack) -> None:
    done = stack.run("up", "--detach", "--no-demo", "--listen", "0.0.0.0")
    assert done.returncode == 1
    assert "down` first" in done.stderr


def test_status_shows_every_process(stack: Stack) -> None:
    found = stack.status(wait_s=10)
    assert found["ready"], found["problems"]
    for row in found["processes"]:
        assert row["pid"]
        assert row["state"] == "RUNNING"
        assert row["memory_bytes"] > 1_000_000
        assert row["uptime_s"] > 0


def test_logs_of_an_unknown_process_name_those_there_are(stack: Stack) -> None:
    done = stack.run("logs", "nothing")
    assert done.returncode == 1
    assert "controller" in done.stderr


def test_a_busy_port_stops_a_start_before_anything_runs(stack: Stack) -> None:
    other = Stack(stack.home.parent / "other")
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = other.run("up", "--detach", "--no-demo", "--port", str(server.getsockname()[1]))
    assert done.returncode == 1
    assert "is in use" in done.stderr
    assert "--port" in done.stderr
    assert other.left_behind() == []


def test_down_stops_everything_even_when_the_supervisor_was_killed(stack: Stack) -> None:
    os.kill(Supervisor(Home(stack.home)).pid(), signal.SIGKILL)
    done = stack.run("down")
    assert done.returncode == 0, done.stderr
    assert stack.left_behind() == []
    assert stack.run("down").returncode == 0


def test_a_demo_engine_that_dies_does_not_stop_the_rest(stack: Stack, tmp_path: Path) -> None:
    broken = tmp_path / "llama-server"
    broken.write_text("#!/bin/sh\necho no such instruction >&2\nexit 132\n")
    broken.chmod(0o755)
    home = tmp_path / "home"
    (home / "agent").mkdir(parents=True)
    programs = {"llama-server": {"path": str(broken)}}
    (home / "agent" / "config.json").write_text(json.dumps({"programs": programs, "docker": False}))
    other = Stack(home)
    try:
        done = other.up_with_demo()
        assert "the demo model does not answer" in done.stderr
        assert other.rows("/servers/")[0]["status"] == "online"
    finally:
        other.stop()
