"""What an agent acts on, and what it refuses and says so, with an engine running meanwhile."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from agent.desired import Acceptance
from agent.home import AgentHome
from agent.main import Agent
from tests.agent.conftest import is_alive, make_script, running, until
from tests.agent.master import SERVER_ID, TestMaster
from wire import certs
from wire.envelope import Envelope, seal
from wire.errors import BadMessage, BadSignature
from wire.messages import Desired, DesiredState, InstanceState, ObservedInstance, Order, TailLogs

pytestmark = pytest.mark.asyncio
SPEC = make_script("echo I am up; exec sleep 300")


def is_started(instance: ObservedInstance) -> bool:
    return instance.state is InstanceState.STARTING and bool(instance.unit_id)


@pytest_asyncio.fixture
async def started(master: TestMaster, home: AgentHome) -> AsyncIterator[tuple[Agent, ObservedInstance]]:
    """An agent that runs generation 5, and its instance."""
    master.envelope = master.seal_state(SPEC, generation=5)
    async with running(home) as agent:
        instance = await master.until_instance("inst-1", is_started)
        output = home.instance("inst-1") / "output.log"
        await until(lambda: output.read_text() == "I am up\n")
        yield agent, instance


def forged(master: TestMaster) -> Envelope:
    stranger = certs.load_signing_key(certs.make_signing_key().private_pem)
    state = DesiredState(server_id=SERVER_ID, generation=9)
    return seal(stranger, state, purpose="desired", server_id=SERVER_ID, generation=9, now=time.time())


def altered(master: TestMaster) -> Envelope:
    payload = base64.b64encode(msgspec.json.encode(DesiredState(server_id=SERVER_ID, generation=9))).decode()
    return msgspec.structs.replace(master.seal_state(generation=9), payload=payload + " ")


def raised(master: TestMaster) -> Envelope:
    return msgspec.structs.replace(master.seal_state(generation=3), generation=9)


def expired(master: TestMaster) -> Envelope:
    state = DesiredState(server_id=SERVER_ID, generation=9)
    an_hour_ago = time.time() - 3600
    return seal(master.signing_key, state, purpose="desired", server_id=SERVER_ID, generation=9, now=an_hour_ago)


def an_order(master: TestMaster) -> Envelope:
    state = DesiredState(server_id=SERVER_ID, generation=9)
    return seal(master.signing_key, state, purpose="order", server_id=SERVER_ID, generation=9, now=time.time())


def disagreeing(master: TestMaster) -> Envelope:
    state = DesiredState(server_id=SERVER_ID, generation=8)
    return seal(master.signing_key, state, purpose="desired", server_id=SERVER_ID, generation=9, now=time.time())


def with_a_path_as_id(master: TestMaster) -> Envelope:
    return master.seal_state(msgspec.structs.replace(SPEC, instance_id="../../etc"), generation=9)


def older(master: TestMaster) -> Envelope:
    return master.seal_state(generation=4)


def anothers(master: TestMaster) -> Envelope:
    return master.seal_state(generation=9, server_id="srv-2")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (forged, "bad_signature"),
        (altered, "bad_signature"),
        (raised, "bad_signature"),
        (an_order, "bad_signature"),
        (expired, "expired"),
        (older, "stale_generation"),
        (anothers, "wrong_server"),
        (disagreeing, "bad_message"),
        (with_a_path_as_id, "bad_message"),
    ],
)
async def test_a_state_that_may_not_be_acted_on_is_refused_said_and_changes_nothing(
    master: TestMaster, home: AgentHome, started: tuple[Agent, ObservedInstance], make: object, code: str
) -> None:
    _, before = started
    assert callable(make)
    kept = home.desired_file.read_bytes()
    await master.send(Desired(envelope=make(master)))
    await master.until(lambda: master.observed is not None and bool(master.observed.rejected), 5)
    assert master.observed is not None
    assert master.observed.rejected.startswith(f"{code}: ")
    assert master.observed.generation == 5
    after = master.instance("inst-1")
    assert after is not None
    assert (after.unit_id, after.restarts) == (before.unit_id, 0)
    assert is_alive(int(after.unit_id))
    assert home.desired_file.read_bytes() == kept
    await master.want(SPEC, generation=6)
    await master.until(lambda: master.observed is not None and master.observed.generation == 6, 5)
    assert master.observed.rejected == "", "a good one clears it"


async def test_the_same_generation_again_restarts_nothing(
    master: TestMaster, started: tuple[Agent, ObservedInstance]
) -> None:
    _, before = started
    await master.want(SPEC, generation=5)
    await master.want(SPEC, generation=6)
    await master.until(lambda: master.observed is not None and master.observed.generation == 6, 5)
    after = master.instance("inst-1")
    assert after is not None
    assert (after.unit_id, after.restarts) == (before.unit_id, 0)


async def test_a_message_that_is_not_understood_does_not_cut_the_link(
    master: TestMaster, started: tuple[Agent, ObservedInstance]
) -> None:
    for text in ("{}", "not json", '{"type":"launch_missiles"}', '{"type":"desired","envelope":{}}'):
        await master.send_text(text)
    await master.want(SPEC, generation=6)
    await master.until(lambda: master.observed is not None and master.observed.generation == 6, 5)
    assert len(master.hellos()) == 1


async def test_an_order_is_followed_once(master: TestMaster, started: tuple[Agent, ObservedInstance]) -> None:
    order = TailLogs(nonce="n1", instance_id="inst-1", lines=5)
    envelope = seal(master.signing_key, order, purpose="order", server_id=SERVER_ID, generation=0, now=time.time())
    await master.send(Order(envelope=envelope))
    await master.until(lambda: bool(master.tails()), 5)
    await master.send(Order(envelope=envelope))
    await master.order_tail(TailLogs(nonce="n2", instance_id="inst-1", lines=5))
    await master.until(lambda: any(tail.nonce == "n2" for tail in master.tails()), 5)
    assert [tail.nonce for tail in master.tails()] == ["n1", "n2"]
    assert master.tails()[0].lines == ("I am up",)


async def test_a_tail_of_an_unknown_instance_is_answered_with_an_error(
    master: TestMaster, started: tuple[Agent, ObservedInstance]
) -> None:
    await master.order_tail(TailLogs(nonce="n1", instance_id="nobody"))
    await master.until(lambda: bool(master.tails()), 5)
    assert master.tails()[0].error == "no instance nobody on this server"


async def test_a_nonce_is_refused_again_until_its_order_cannot_be_valid_any_more(
    master: TestMaster, home: AgentHome
) -> None:
    identity = home.identity()
    assert identity is not None
    acceptance = Acceptance(home, identity)
    order = TailLogs(nonce="n1", instance_id="inst-1")
    now = time.time()
    envelope = seal(master.signing_key, order, purpose="order", server_id=SERVER_ID, generation=0, now=now)
    assert acceptance.order(envelope, now) == order
    for later_s in (0, 100, 400):
        with pytest.raises(BadMessage, match="came before"):
            acceptance.order(envelope, now + later_s)
    state = master.seal_state(generation=1)
    with pytest.raises(BadSignature):
        acceptance.order(state, now)


async def test_the_last_accepted_state_is_worked_on_while_the_master_is_away(
    master: TestMaster, home: AgentHome
) -> None:
    master.envelope = master.seal_state(SPEC, generation=5)
    async with running(home):
        first = await master.until_instance("inst-1", is_started)
    await master.stop()
    async with running(home) as agent:
        assert agent.acceptance.state.generation == 5
        await agent.supervisor.settled.wait()
        (seen,) = agent.supervisor.observed()
        assert seen.unit_id == first.unit_id
        master.received.clear()
        await master.start()
        await master.until(lambda: bool(master.hellos()), 15)
        assert master.hellos()[0].generation == 5
        assert is_alive(int(first.unit_id))


async def test_without_any_accepted_state_nothing_that_runs_is_touched(master: TestMaster, home: AgentHome) -> None:
    master.envelope = master.seal_state(SPEC, generation=5)
    async with running(home):
        first = await master.until_instance("inst-1", is_started)
    home.desired_file.write_bytes(b'{"damaged":')
    master.envelope = None
    master.received.clear()
    async with running(home) as agent:
        await master.until(lambda: len(master.metrics()) > 0, 10)
        assert master.hellos()[0].generation == 0
        assert is_alive(int(first.unit_id))
        assert [seen.instance_id for seen in agent.supervisor.observed()] == ["inst-1"]
        await master.want(SPEC, generation=5)
        again = await master.until_instance("inst-1", lambda seen: seen.state is InstanceState.STARTING)
    assert again.unit_id == first.unit_id


async def test_a_state_on_disk_that_another_key_signed_is_not_used(master: TestMaster, home: AgentHome) -> None:
    identity = home.identity()
    assert identity is not None
    home.desired_file.write_bytes(msgspec.json.encode(forged(master)))
    acceptance = Acceptance(home, identity)
    acceptance.load()
    assert acceptance.in_force is None


async def test_a_state_that_cannot_be_kept_on_disk_is_acted_on_all_the_same(
    master: TestMaster, home: AgentHome
) -> None:
    identity = home.identity()
    assert identity is not None
    acceptance = Acceptance(home, identity)
    Path(home.desired_file).mkdir()  # no file can be put there
    assert acceptance.offer(master.seal_state(SPEC, generation=3), time.time())
    assert acceptance.state.generation == 3
