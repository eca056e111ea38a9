"""The life of a real engine under a real agent, the same over both runtimes."""

from __future__ import annotations

import os
import signal
import subprocess

import aiohttp
import psutil
import pytest

from agent.home import AgentHome
from tests.agent.conftest import agent_process, is_alive, make_llama, running
from tests.agent.master import TestMaster
from wire.engine import RuntimeKind
from wire.messages import InstanceState, ObservedInstance, TailLogs

pytestmark = pytest.mark.asyncio


def is_ready(instance: ObservedInstance) -> bool:
    return instance.state is InstanceState.READY


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
        seen = await master.until_instance("inst-1", lambda each: len(each.exits) >= 2)
    last = seen.exits[-1]
    assert last.cause == "The model's file is damaged or of another kind."
    assert last.remedy == "Import the model again."
    assert last.exit_code not in (0, None)
    assert any("failed to load model" in line for line in last.lines)
    assert [each.attempt for each in seen.exits] == [1, 2]
