"""A server across a network: it joins, pulls the model, serves through its relay, and outlives a cut cable."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from tests.e2e.network import Machine, another_machine
from tests.e2e.stack import Load, Stack
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(420)]

CUT_S = 5.0


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with another_machine() as made:
        yield made


@pytest.fixture(scope="module")
def stack(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation that listens on the network, its only open server across it."""
    made = Stack(tmp_path_factory.mktemp("two") / "home")
    try:
        made.up("--runtime", "process", "--listen", "0.0.0.0")
        folder = made.home.parent / "remote"
        remote = made.start_second_agent(folder, machine)
        local = next(row["id"] for row in made.rows("/servers/") if row["id"] != remote)
        made.post(f"/servers/{local}/drain/")
        wait_for(
            lambda: [row["server"] for row in made.ready_instances()] == [remote] and len(made.instances()) == 1,
            within_s=60,
            what="the only instance runs on the other machine",
        )
        yield made
        made.stop_second_agent(folder)
    finally:
        made.stop()


def test_requests_cross_the_network_through_the_relay(stack: Stack, machine: Machine) -> None:
    (server,) = [row for row in stack.rows("/servers/") if row["name"] == "second"]
    assert machine.there in server["facts"]["addresses"]
    with Load(stack, clients=4) as load:
        load.goes_on(answers=8)
    assert load.failures == []


def test_the_model_was_pulled_once_and_verified(stack: Stack) -> None:
    blobs = [path for path in (stack.home.parent / "remote").rglob("*") if path.is_file() and path.stat().st_size > 1e7]
    assert len({path.stat().st_ino for path in blobs}) == 1  # a blob and its checkout are one file


def test_a_cut_cable_heals_and_no_engine_restarts(stack: Stack, machine: Machine) -> None:
    (before,) = stack.ready_instances()
    machine.cut()
    time.sleep(CUT_S)  # the fault itself, not a wait for something
    machine.mend()
    mended_at = time.monotonic()

    def heard_again() -> bool:
        rows = [row for row in stack.rows("/servers/") if row["name"] == "second"]
        return rows[0]["status"] == "online" and bool(stack.ready_instances())

    with Load(stack) as load:
        wait_for(heard_again, within_s=10, what="the other machine is heard of again")
        load.goes_on()
    assert time.monotonic() - mended_at < 30
    (after,) = stack.ready_instances()
    assert (after["id"], after["unit_id"], after["restarts"]) == (before["id"], before["unit_id"], before["restarts"])


def test_nobody_without_a_gateways_certificate_reaches_an_engine(stack: Stack, machine: Machine) -> None:
    (server,) = [row for row in stack.rows("/servers/") if row["name"] == "second"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((machine.there, server["facts"]["relay_port"]), timeout=5) as raw:
        assert _asked(context, raw) == b""


def _asked(context: ssl.SSLContext, raw: socket.socket) -> bytes:
    try:
        with context.wrap_socket(raw) as secured:
            secured.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            return secured.recv(100)
    except OSError:  # SSLError is one: refused
        return b""
