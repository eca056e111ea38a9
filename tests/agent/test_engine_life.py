"""The life of a real engine under a real agent, the same over both runtimes."""

from __future__ import annotations

import os
import signal
import subprocess

import aiohttp
import psutil
import pytest

from agent.home import AgentHome
from agent.reconcile import Patience
from agent.records import Records
from tests.agent.conftest import (
    MODEL_FILE,
    agent_process,
    is_alive,
    make_llama,
    make_script,
    manifest_of,
    running,
    until,
)
from tests.agent.master import TestMaster
from wire.engine import Readiness, RuntimeKind
from wire.messages import InstanceState, LastExit, ObservedInstance, TailLogs

pytestmark = pytest.mark.asyncio


def is_ready(instance: ObservedInstance) -> bool:
    return instance.state is InstanceState.READY


def has_backed_off(instance: ObservedInstance) -> bool:
    return instance.state is InstanceState.BACKOFF and bool(instance.exits)


def has_told(instance: ObservedInstance) -> bool:
    """One time in thirty this engine exits before its log is written out; the next attempt tells."""
    return any(each.cause for each in instance.exits)


def told(instance: ObservedInstance) -> LastExit:
    return next(each for each in instance.exits if each.cause)


def pid_of(instance: ObservedInstance) -> int:
    if instance.runtime is RuntimeKind.PROCESS:
        return int(instance.unit_id)
    inspect = ["docker", "inspect", "-f", "{{.State.Pid}}", instance.unit_id]
    return int(subprocess.run(inspect, check=True, capture_output=True, text=True).stdout)


async def complete(port: int) -> str:
    body = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as response,
    ):
        answer = await response.json()
    text: str = answer["choices"][0]["text"]
    return text


async def test_an_engine_starts_answers_is_restarted_after_a_crash_and_stops(
    master: TestMaster, home: AgentHome, runtime: RuntimeKind
) -> None:
    async with running(home):
        await master.want(make_llama(master, runtime), generation=1)
        await master.until(lambda: bool(master.hellos()))
        await master.want(make_llama(master, runtime), generation=1)
        first = await master.until_instance("inst-1", is_ready)
        assert first.runtime is runtime
        assert first.restarts == 0
        assert await complete(first.port)

        os.kill(pid_of(first), signal.SIGKILL)
        second = await master.until_instance("inst-1", lambda each: each.restarts == 1 and is_ready(each))
        assert second.unit_id != first.unit_id
        waited = [seen for seen in master.history("inst-1") if seen.state is InstanceState.BACKOFF and seen.exits]
        assert 0 < waited[0].retry_at - waited[0].exits[0].at <= 0.7, "the first back-off is half a second"
        assert second.exits[-1].exit_code == 137
        assert "SIGKILL" in second.exits[-1].cause
        assert second.exits[-1].lines
        assert any(part.endswith("model.gguf") for part in second.exits[-1].command)
        assert await complete(second.port)

        await master.order_tail(TailLogs(nonce="n1", instance_id="inst-1", lines=3))
        await master.until(lambda: bool(master.tails()))
        assert len(master.tails()[0].lines) == 3

        pid = pid_of(second)
        await master.want(generation=2)
        await master.until(
            lambda: master.observed is not None and master.observed.generation == 2 and not master.observed.instances
        )
        assert not is_alive(pid)
        assert not home.instance("inst-1").exists()


async def test_an_engine_is_adopted_when_the_agent_is_killed_and_started_again(
    master: TestMaster, home: AgentHome, runtime: RuntimeKind
) -> None:
    master.envelope = master.seal_state(make_llama(master, runtime), generation=1)
    async with agent_process(home) as agent:
        first = await master.until_instance("inst-1", is_ready)
        started = psutil.Process(pid_of(first)).create_time()
        await agent.end(signal.SIGKILL)
    master.received.clear()
    async with agent_process(home) as agent:
        await master.until(lambda: master.observed is not None)
        second = master.instance("inst-1")
        assert second is not None
        assert second.state is InstanceState.READY, "a restart of the agent must not take a ready engine out of service"
        assert (second.unit_id, second.port) == (first.unit_id, first.port)
        assert psutil.Process(pid_of(second)).create_time() == started
        assert await complete(second.port)
        await agent.end(signal.SIGTERM, timeout_s=2.0)
        assert is_alive(pid_of(second)), "SIGTERM to the agent leaves engines running"


async def test_a_model_file_that_is_no_gguf_ends_with_the_engines_own_words(
    master: TestMaster, home: AgentHome, runtime: RuntimeKind
) -> None:
    master.envelope = master.seal_state(make_llama(master, runtime, model=b"not a model" * 100), generation=1)
    async with running(home):
        seen = await master.until_instance("inst-1", lambda each: len(each.exits) >= 2 and has_told(each))
    last = told(seen)
    assert last.cause == "The model's file is damaged or of another kind."
    assert last.remedy == "Import the model again."
    assert last.exit_code not in (0, None)
    assert any("failed to load model" in line for line in last.lines)
    assert [each.attempt for each in seen.exits][:2] == [1, 2]
    assert seen.state in (InstanceState.BACKOFF, InstanceState.STARTING)


async def test_a_model_file_that_was_cut_short_ends_with_the_engines_own_words(
    master: TestMaster, home: AgentHome
) -> None:
    cut = MODEL_FILE.read_bytes()[: 2**20]
    master.envelope = master.seal_state(make_llama(master, RuntimeKind.PROCESS, model=cut), generation=1)
    async with running(home):
        seen = await master.until_instance("inst-1", has_told)
    last = told(seen)
    assert last.cause == "The model's file is damaged or of another kind."
    assert last.exit_code == 1
    assert any("not within the file bounds" in line or "failed to load model" in line for line in last.lines)


async def test_an_engine_that_does_not_become_ready_in_time_is_stopped_and_backs_off(
    master: TestMaster, home: AgentHome, runtime: RuntimeKind
) -> None:
    never = Readiness(path="/no-such-path", start_timeout_s=1.5)
    master.envelope = master.seal_state(make_llama(master, runtime, readiness=never), generation=1)
    async with running(home):
        seen = await master.until_instance("inst-1", has_backed_off)
    assert seen.reason == "not ready after 1.5 s"
    assert seen.exits[-1].cause == "not ready after 1.5 s"
    assert seen.exits[-1].lines, "what it said meanwhile is kept"
    assert seen.port == 0


async def test_an_engine_that_stops_answering_is_unhealthy_then_killed_and_started_again(
    master: TestMaster, home: AgentHome, runtime: RuntimeKind
) -> None:
    short = Patience(probe_every_s=0.1, probe_timeout_s=0.3, unhealthy_after_s=0.8, kill_after_s=2)
    master.envelope = master.seal_state(make_llama(master, runtime, stop_grace_s=0.2), generation=1)
    async with running(home, short):
        first = await master.until_instance("inst-1", is_ready)
        os.kill(pid_of(first), signal.SIGSTOP)
        silent = await master.until_instance("inst-1", lambda each: each.state is InstanceState.UNHEALTHY)
        assert silent.unit_id == first.unit_id
        assert silent.reason == "no answer to its check for more than 0.8 s"
        second = await master.until_instance("inst-1", lambda each: each.restarts >= 1 and is_ready(each))
    assert second.unit_id != first.unit_id
    assert second.exits[0].cause.startswith("did not answer its check for"), "not: want of memory"
    assert second.exits[0].exit_code == 137


@pytest.mark.docker
async def test_a_gpu_that_docker_cannot_give_is_said_and_leaves_no_container(
    master: TestMaster, home: AgentHome, llama_image: str
) -> None:
    spec = make_llama(master, RuntimeKind.DOCKER, gpu_indexes=(0,))
    master.envelope = master.seal_state(spec, generation=1)
    async with running(home):
        await master.until_instance("inst-1", lambda each: len(each.exits) >= 2)
        seen = await master.until_instance("inst-1", lambda each: has_backed_off(each) and not each.unit_id)
    assert len({each.attempt for each in seen.exits}) == len(seen.exits), "each attempt ends once"
    assert seen.exits[-1].cause == "Docker on this server cannot give GPUs to containers."
    assert "NVIDIA container toolkit" in seen.exits[-1].remedy
    assert seen.exits[-1].lines[0].startswith("Docker could not start the container: could not select device driver")


async def test_ends_are_kept_over_restarts_of_the_agent(master: TestMaster, home: AgentHome) -> None:
    master.envelope = master.seal_state(make_script("echo I cannot; exit 3"), generation=1)
    async with running(home):
        await master.until_instance("inst-1", lambda each: len(each.exits) == 2)
    master.received.clear()
    async with running(home):
        seen = await master.until_instance("inst-1", lambda each: len(each.exits) >= 3)
    assert [each.attempt for each in seen.exits][:3] == [1, 2, 3]
    assert {each.exit_code for each in seen.exits} == {3}
    assert all(each.at > 0 for each in seen.exits)
    assert seen.exits[0].lines == ("I cannot",)
    assert seen.exits[0].command[-2:] == ("-c", "echo I cannot; exit 3")


async def test_at_most_five_ends_are_kept_the_newest(home: AgentHome) -> None:
    records = Records(home)
    for attempt in range(1, 8):
        last = LastExit(attempt=attempt, exit_code=1, at=0.0, ran_s=0.0, command=(), lines=())
        records.add_exit("inst-1", last)
    assert [each.attempt for each in Records(home).get("inst-1").exits] == [3, 4, 5, 6, 7]


async def test_an_engine_that_dies_while_no_agent_runs_is_started_by_the_next(
    master: TestMaster, home: AgentHome
) -> None:
    master.envelope = master.seal_state(make_script("echo last words; exec sleep 300"), generation=1)
    async with running(home):
        first = await master.until_instance("inst-1", lambda each: bool(each.unit_id))
    os.kill(int(first.unit_id), signal.SIGKILL)
    master.received.clear()
    async with running(home):
        second = await master.until_instance("inst-1", lambda each: each.restarts == 1 and bool(each.port))
    assert second.unit_id != first.unit_id
    assert second.exits[0].lines == ("last words",)


async def test_a_changed_spec_ends_the_old_engine_before_the_new_one_starts(
    master: TestMaster, home: AgentHome
) -> None:
    master.envelope = master.seal_state(make_script("exec sleep 300"), generation=1)
    async with running(home):
        first = await master.until_instance("inst-1", lambda each: bool(each.unit_id))
        await master.want(make_script("exec sleep 301"), make_script("exec sleep 302", instance_id="b"), generation=2)
        second = await master.until_instance("inst-1", lambda each: each.unit_id not in ("", first.unit_id))
        await master.until_instance("b", lambda each: bool(each.port))
    assert second.unit_id != first.unit_id
    assert not is_alive(int(first.unit_id))
    assert second.exits == (), "it was asked to go: that is no failure"


async def test_a_blob_that_comes_to_the_master_later_is_fetched_without_being_told(
    master: TestMaster, home: AgentHome
) -> None:
    manifest = manifest_of(master, {"weights": b"w"})
    data = master.blobs.pop(manifest.files[0].sha256)
    spec = make_script("cat {model_dir}/weights; exec sleep 300", manifest=manifest)
    master.envelope = master.seal_state(spec, generation=1)
    async with running(home):
        waits = await master.until_instance("inst-1", lambda each: bool(each.reason))
        assert waits.state is InstanceState.FETCHING
        assert waits.reason.startswith("the master does not have weights")
        master.put_blob(data)
        await master.until_instance("inst-1", lambda each: bool(each.port))


async def test_load_and_facts_come_with_the_first_heartbeat(master: TestMaster, home: AgentHome) -> None:
    async with running(home) as agent:
        await master.until(lambda: bool(master.metrics()), 10)
        facts = master.hellos()[0].facts
        assert facts.relay_port == agent.relay.port
        assert facts.addresses == ("127.0.0.1",)
        (process,) = [info for info in facts.runtimes if info.kind is RuntimeKind.PROCESS]
        assert "llama-server" in process.programs


async def test_a_fetch_that_is_not_wanted_any_more_is_broken_off(master: TestMaster, home: AgentHome) -> None:
    master.hold_blobs = True
    spec = make_script("exec sleep 300", manifest=manifest_of(master, {"weights": b"w" * 1000}))
    master.envelope = master.seal_state(spec, generation=1)
    async with running(home):
        await master.until_instance("inst-1", lambda each: each.state is InstanceState.FETCHING)
        await until(lambda: len(master.blob_ranges) == 1)
        await master.want(generation=2)
        await master.until(lambda: master.observed is not None and not master.observed.instances, 5)
        await until(lambda: master.blobs_given_up == 1)
