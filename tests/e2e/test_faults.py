"""Any process is killed under a stream of requests: it comes back by itself, and only a killed engine restarts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from config.home import Home
from config.launcher.supervision import Supervisor
from tests.conftest import Postgres
from tests.e2e.stack import Load, Stack
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(420), pytest.mark.postgres]

HEALS_WITHIN_S = 30  # a deadline: the promise is 10, but tests of others run beside this one
OUTAGE_S = float(os.environ.get("STOKEHOLD_TEST_OUTAGE_S", "10"))  # 600: the figure we promise
CONTROL_PLANE = ("beat", "worker", "controller", "master", "valkey")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("faults") / "home", database_url=postgres.create_database())
    try:
        made.up_with_demo()
        yield made
    finally:
        made.stop()


def _counted(stack: Stack) -> int:
    """Requests on record."""
    return sum(int(row["requests"]) for row in stack.get("/usage/", group_by="")["results"])


def _settled(stack: Stack) -> int:
    """Requests on record, once those of earlier tests have come in."""
    quiet_since, last = time.monotonic(), _counted(stack)
    while time.monotonic() - quiet_since < 4:
        time.sleep(0.5)
        if (now := _counted(stack)) != last:
            quiet_since, last = time.monotonic(), now
    return last


def _engines(stack: Stack) -> list[str]:
    return sorted(row["unit_id"] for row in stack.ready_instances())


@pytest.mark.parametrize("process", ["master", "controller", "worker", "beat", "valkey", "agent"])
def test_a_killed_process_heals_and_no_request_notices(stack: Stack, process: str) -> None:
    engines = _engines(stack)
    with Load(stack) as load:
        _kill_and_wait(stack, process)
        load.goes_on()
    assert load.failures == []
    assert _engines(stack) == engines


def test_a_killed_gateway_heals_and_loses_only_what_it_had_in_flight(stack: Stack) -> None:
    engines = _engines(stack)
    with Load(stack) as load:
        killed_at = time.monotonic()
        _kill_and_wait(stack, "gateway")
        healed_at = time.monotonic()
        load.goes_on()
    assert [error for at, error in load.failures if not killed_at <= at <= healed_at + 2] == []
    assert _engines(stack) == engines


def test_a_killed_engine_is_restarted_by_its_agent(stack: Stack) -> None:
    (before,) = _engines(stack)
    with Load(stack) as load:
        os.kill(int(before), signal.SIGKILL)
        wait_for(lambda: _engines(stack) not in ([before], []), within_s=HEALS_WITHIN_S, what="a new engine is ready")
        load.goes_on()


def test_a_killed_worker_leaves_no_children_behind(stack: Stack) -> None:
    pid = stack.pid("worker")
    children = psutil.Process(pid).children(recursive=True)
    _kill_and_wait(stack, "worker")
    assert [child.pid for child in children if child.is_running()] == []


@pytest.mark.timeout(420 + OUTAGE_S)
def test_the_gateway_answers_and_loses_no_usage_with_all_behind_it_stopped(stack: Stack, postgres: Postgres) -> None:
    engines = _engines(stack)
    supervisor = Supervisor(Home(stack.home))
    before = _settled(stack)
    with Load(stack) as load:
        for name in CONTROL_PLANE:
            supervisor.stop(name)
        postgres.stop()
        try:
            until = time.monotonic() + OUTAGE_S
            while time.monotonic() < until:
                load.goes_on(answers=1)
        finally:
            postgres.start()
            supervisor.start(*reversed(CONTROL_PLANE))
        found = stack.status(wait_s=60)
        load.goes_on()
    assert found["ready"], found["problems"]
    assert load.failures == []
    wait_for(lambda: _counted(stack) == before + load.answered, within_s=20, what="each request is accounted once")
    assert _engines(stack) == engines


def test_a_killed_supervisor_is_found_and_cleared_by_the_next_start(stack: Stack) -> None:
    engines = _engines(stack)
    supervisor = Supervisor(Home(stack.home))
    os.kill(supervisor.pid(), signal.SIGKILL)
    stack.up()
    beats = [line for line in stack.left_behind() if " beat" in line]
    assert len(beats) == 1
    assert stack.status(wait_s=10)["ready"]
    assert _engines(stack) == engines


def _kill_and_wait(stack: Stack, process: str) -> None:
    """SIGKILL; then the process runs again, and all is well."""
    before = stack.pid(process)
    assert before
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: stack.pid(process) not in (None, before), within_s=HEALS_WITHIN_S, what=f"{process} runs again")
    found = stack.status(wait_s=HEALS_WITHIN_S)
    assert found["ready"], found["problems"]
