"""Leader election: one decides, a dead one is replaced, and one that cannot renew stops by its own clock."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import OperationalError, connection, connections
from django.utils import timezone

from config.home import SOURCE_DIR
from deployments import leader
from deployments.controller import Controller, run_controller
from deployments.leader import LostLeadership
from deployments.models import Deployment, Leader
from tests.factories import make_deployment
from tests.master import test_database_url
from tests.waiting import wait_for

NOW = timezone.now()
_S = dt.timedelta(seconds=1)


class Clock:
    """Monotonic seconds of one controller."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.django_db
def test_one_of_two_leads_and_the_other_takes_over_when_it_resigns() -> None:
    one, two = Controller("one"), Controller("two")
    assert one.step(NOW)
    assert not two.step(NOW)
    assert one.step(NOW + _S)
    one.resign()
    assert two.step(NOW + _S)
    assert not one.step(NOW + 2 * _S)


@pytest.mark.django_db
def test_a_silent_leader_is_replaced_when_its_lease_ran_out() -> None:
    one, two = Controller("one"), Controller("two")
    assert one.step(NOW)
    assert not two.step(NOW + 5 * _S)
    assert two.step(NOW + 6 * _S)
    assert not one.step(NOW + 6 * _S)
    assert not one.leads


@pytest.mark.django_db
def test_a_leader_whose_time_ran_out_by_its_own_clock_decides_nothing_more() -> None:
    """Its wall clock may lag: the monotonic one does not."""
    clock = Clock()
    term = leader.acquire("one", NOW, 5.0, clock)
    assert term is not None
    leader.fence(term, NOW)
    clock.now += 4.0
    with pytest.raises(LostLeadership):
        leader.fence(term, NOW)
    with pytest.raises(LostLeadership):
        leader.renew(term, NOW)


@pytest.mark.django_db
def test_a_leader_that_was_replaced_cannot_write() -> None:
    clock = Clock()
    term = leader.acquire("one", NOW, 5.0, clock)
    assert term is not None
    assert leader.acquire("two", NOW + 6 * _S, 5.0, clock) is not None
    with pytest.raises(LostLeadership):
        leader.fence(term, NOW)
    leader.release(term)
    assert Leader.objects.get().holder == "two"


@pytest.mark.django_db
def test_a_pass_that_loses_the_lease_midway_leaves_nothing_half_done() -> None:
    clock = Clock()
    controller = Controller("one", clock=clock)
    assert controller.step(NOW)
    deployment = make_deployment()

    def late(execute, sql, params, many, context):
        if "deployments_deployment" in sql:
            clock.now += 10
        return execute(sql, params, many, context)

    with connection.execute_wrapper(late):
        assert not controller.step(NOW + _S)
    deployment.refresh_from_db()
    assert deployment.explanation == ""
    assert not controller.leads


@pytest.mark.django_db(transaction=True)
def test_of_many_that_ask_at_the_same_time_one_gets_the_lease() -> None:
    barrier = threading.Barrier(6, timeout=20)
    won: list[str] = []
    failures: list[BaseException] = []

    def ask(name: str) -> None:
        try:
            barrier.wait()
            if leader.acquire(name, NOW, 5.0, time.monotonic) is not None:
                won.append(name)
        except BaseException as error:
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=ask, args=(f"c{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not failures
    assert won == [Leader.objects.get().holder]


# ------------------------------------------------------------------------------------------------ threads


@contextmanager
def running(holder: str, outage: threading.Event | None = None) -> Iterator[threading.Thread]:
    """`run_controller` in a thread; its database is away while `outage` is set."""
    stop = threading.Event()

    def away(execute, sql, params, many, context):
        if outage is not None and outage.is_set():
            raise OperationalError("the database is away")
        return execute(sql, params, many, context)

    def run() -> None:
        try:
            with connection.execute_wrapper(away):
                run_controller(stop, holder=holder, tick_s=0.05)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(timeout=20)
        assert not thread.is_alive()


def _holder() -> str:
    return Leader.objects.values_list("holder", flat=True).first() or ""


@pytest.mark.django_db(transaction=True)
def test_a_stopped_controller_hands_over_at_once() -> None:
    with running("first") as first, running("second"):
        wait_for(_holder, what="one of them leads")
        leading = _holder()
        assert first.is_alive()
    assert leading in ("first", "second")
    assert _holder() == ""
    with running("next"):
        wait_for(lambda: _holder() == "next", within_s=4, what="the lease was given back")


@pytest.mark.django_db(transaction=True)
def test_an_outage_of_the_database_is_survived(settings) -> None:
    settings.LEADER_LEASE_S = 2.0
    outage = threading.Event()
    with running("one", outage) as thread:
        wait_for(lambda: _holder() == "one", what="it leads")
        outage.set()
        expired = timezone.now() + 2 * _S
        wait_for(lambda: timezone.now() > expired, what="its lease ran out")
        assert thread.is_alive()
        deployment = make_deployment()
        outage.clear()

        def decided() -> bool:
            return Deployment.objects.get(pk=deployment.pk).explanation == "There is no server"

        wait_for(decided, what="it decides again")


# ------------------------------------------------------------------------------------------------ processes


class Process:
    """`manage.py controller` over the test's database."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        environment = os.environ | {
            "STOKEHOLD_HOME": str(folder),
            "DATABASE_URL": test_database_url(),
            "REDIS_URL": f"unix://{folder}/no-such.sock",
            "DJANGO_SETTINGS_MODULE": "config.settings.embedded",
        }
        self.log = folder / "log"
        with self.log.open("ab") as log:
            command = [sys.executable, "manage.py", "controller"]
            self._process = subprocess.Popen(command, cwd=SOURCE_DIR, env=environment, stdout=log, stderr=log)

    def leads(self) -> bool:
        return f":{self._process.pid}:" in _holder()

    def end(self, how: int) -> int:
        self._process.send_signal(how)
        return self._process.wait(timeout=15)


@pytest.mark.django_db(transaction=True)
def test_a_killed_leader_is_replaced_and_a_stopped_one_ends_cleanly(tmp_path: Path) -> None:
    first, second = Process(tmp_path / "first"), Process(tmp_path / "second")
    try:
        wait_for(lambda: first.leads() or second.leads(), within_s=60, what="one of them leads")
        leading, waiting = (first, second) if first.leads() else (second, first)
        wait_for(lambda: "controller.started" in waiting.log.read_text(), within_s=60, what="the other is up")
        assert leading.end(signal.SIGKILL) != 0
        wait_for(waiting.leads, within_s=10, what=f"the other takes over: {waiting.log.read_text()}")
        deployment = make_deployment()
        wait_for(lambda: Deployment.objects.get(pk=deployment.pk).explanation, what="it decides")
        assert waiting.end(signal.SIGTERM) == 0
        assert _holder() == ""
    finally:
        for process in (first, second):
            if process._process.poll() is None:
                process.end(signal.SIGKILL)
