"""Ways of a runtime that no engine's ordinary life shows: strangers, silent daemons, lost processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import docker
import msgspec
import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from agent.choose import choose_runtime
from agent.errors import CannotRun, RuntimeUnavailable
from agent.home import AgentConfig, AgentHome
from agent.main import stop_engines
from agent.operations import Operations
from agent.reconcile import Unit
from agent.records import Records
from agent.runtimes.base import Ended, Runtime
from agent.runtimes.docker import DockerRuntime
from agent.runtimes.process import LOG_LIMIT_BYTES, ProcessRecord, ProcessRuntime, cut, free_port
from agent.store import Store
from agent.store.sources import Network
from agent.supervise import Supervisor
from tests.agent.conftest import MODEL_FILE, is_alive, make_llama, make_script, running, until
from tests.agent.master import TestMaster
from wire.engine import RuntimeKind
from wire.messages import DesiredState, InstanceSpec, InstanceState

pytestmark = pytest.mark.asyncio


# ------------------------------------------------------------------------------------------------ docker


@pytest.fixture
def boxed(master: TestMaster, llama_image: str) -> InstanceSpec:
    """An engine in a container, which waits for nothing."""
    return make_llama(master, RuntimeKind.DOCKER)


@pytest_asyncio.fixture
async def homes(folder: Path) -> AsyncIterator[tuple[AgentHome, AgentHome]]:
    pair = AgentHome(folder / "one"), AgentHome(folder / "two")
    for home in pair:
        home.create()
    yield pair
    for home in pair:
        await stop_engines(home, AgentConfig())


@pytest.mark.docker
async def test_two_homes_on_one_daemon_never_touch_each_others_containers(
    homes: tuple[AgentHome, AgentHome], boxed: InstanceSpec, folder: Path
) -> None:
    one, two = (DockerRuntime(home) for home in homes)
    first = await one.start(boxed, folder, 0)
    second = await two.start(boxed, folder, 0)
    assert first.unit_id != second.unit_id
    assert [unit.unit_id for unit in await one.units()] == [first.unit_id]
    assert [unit.unit_id for unit in await two.units()] == [second.unit_id]
    assert await stop_engines(homes[0], AgentConfig()) == 1
    assert await one.units() == []
    assert [unit.unit_id for unit in await two.units()] == [second.unit_id]
    await asyncio.gather(one.close(), two.close())


@pytest.mark.docker
async def test_a_container_that_runs_the_spec_already_is_kept_when_it_is_started_again(
    homes: tuple[AgentHome, AgentHome], boxed: InstanceSpec, folder: Path
) -> None:
    runtime = DockerRuntime(homes[0])
    spec = msgspec.structs.replace(boxed, engine=msgspec.structs.replace(boxed.engine, argv=("--version-not",)))
    long = msgspec.structs.replace(boxed, spec_hash="long")
    dead = await runtime.start(spec, folder, 0)
    await until_dead(runtime)
    second = await runtime.start(spec, folder, 0)
    assert second.unit_id != dead.unit_id, "a dead one is replaced"
    await runtime.collect(second)
    models = models_of(boxed, folder)
    first = await runtime.start(long, models, 0)
    assert await runtime.start(long, models, 0) == first
    other = await runtime.start(msgspec.structs.replace(long, spec_hash="other"), models, 0)
    assert other.unit_id != first.unit_id
    assert [unit.unit_id for unit in await runtime.units()] == [other.unit_id]
    await runtime.stop(other, 0)
    await runtime.close()


def models_of(spec: InstanceSpec, folder: Path) -> Path:
    """A folder with the real model's file."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    (models / spec.model.files[0].path).write_bytes(MODEL_FILE.read_bytes())
    return models


async def until_dead(runtime: DockerRuntime) -> None:
    async with asyncio.timeout(15):
        while any(unit.running for unit in await runtime.units()):
            await asyncio.sleep(0.05)


@pytest.mark.docker
async def test_a_container_that_is_gone_or_never_ran_has_no_end(
    homes: tuple[AgentHome, AgentHome], boxed: InstanceSpec, folder: Path
) -> None:
    runtime = DockerRuntime(homes[0])
    unit = await runtime.start(boxed, folder, 0)
    client = docker.from_env()
    labels = client.containers.get(unit.unit_id).labels
    client.containers.get(unit.unit_id).remove(force=True)
    assert await runtime.collect(unit) is None
    assert await runtime.stop(unit, 0) is None
    client.containers.create(boxed.engine.image, labels=labels)
    (created,) = await runtime.units()
    assert not created.running
    assert await runtime.collect(created) is None
    assert await runtime.units() == []
    client.close()
    await runtime.close()


@pytest.mark.docker
async def test_a_container_is_shut_in(homes: tuple[AgentHome, AgentHome], boxed: InstanceSpec, folder: Path) -> None:
    runtime = DockerRuntime(homes[0])
    unit = await runtime.start(boxed, folder, 0)
    inspect = ["docker", "inspect", unit.unit_id]
    done = await asyncio.to_thread(subprocess.run, inspect, check=True, capture_output=True)
    (found,) = msgspec.json.decode(done.stdout)
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert host["Binds"] == [f"{folder.resolve()}:/models:ro"]
    assert [port["HostIp"] for port in host["PortBindings"]["8080/tcp"]] == ["127.0.0.1"]
    await runtime.close()


@pytest.mark.docker
async def test_an_image_that_is_nowhere_is_named(homes: tuple[AgentHome, AgentHome], boxed: InstanceSpec) -> None:
    runtime = DockerRuntime(homes[0])
    engine = msgspec.structs.replace(boxed.engine, image="localhost:1/no/such-image:1")
    assert "'localhost:1/no/such-image:1' is not on this server" in await runtime.missing(engine)
    with pytest.raises(CannotRun, match="cannot be pulled") as caught:
        await runtime.prepare(engine, lambda _: None)
    assert caught.value.recheck
    await runtime.close()


@pytest.mark.docker
async def test_automatic_is_docker_where_the_image_is_else_a_process_and_never_flips(
    home: AgentHome, boxed: InstanceSpec
) -> None:
    boxes, process = DockerRuntime(home), ProcessRuntime(home, home.config())
    runtimes: dict[RuntimeKind, Runtime] = {RuntimeKind.PROCESS: process, RuntimeKind.DOCKER: boxes}
    present = msgspec.structs.replace(boxed, runtime=RuntimeKind.AUTO)
    absent = with_engine(present, image="localhost:1/no/such-image:1")
    nowhere = with_engine(absent, program="no-such-engine")
    assert await choose_runtime(present, runtimes, RuntimeKind.AUTO) is RuntimeKind.DOCKER
    assert await choose_runtime(absent, runtimes, RuntimeKind.AUTO) is RuntimeKind.PROCESS
    assert await choose_runtime(present, runtimes, RuntimeKind.PROCESS) is RuntimeKind.PROCESS
    with pytest.raises(CannotRun, match=r"cannot be pulled.*; the program 'no-such-engine' is not on this server"):
        await choose_runtime(nowhere, runtimes, RuntimeKind.AUTO)
    await boxes.close()


def with_engine(spec: InstanceSpec, **changes: str) -> InstanceSpec:
    return msgspec.structs.replace(spec, engine=msgspec.structs.replace(spec.engine, **changes))


async def test_without_a_daemon_processes_run_and_docker_is_not_offered(
    master: TestMaster, home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home.path}/no.sock")
    script = make_script("exec sleep 300", instance_id="plain")
    automatic = msgspec.structs.replace(script, runtime=RuntimeKind.AUTO, instance_id="auto")
    engine = msgspec.structs.replace(script.engine, image="engine:1")
    pinned = msgspec.structs.replace(script, runtime=RuntimeKind.DOCKER, instance_id="boxed", engine=engine)
    master.envelope = master.seal_state(script, automatic, pinned, generation=1)
    async with running(home):
        await master.until_instance("plain", lambda seen: bool(seen.unit_id))
        seen = await master.until_instance("auto", lambda seen: bool(seen.unit_id))
        assert seen.runtime is RuntimeKind.PROCESS
        waits = await master.until_instance("boxed", lambda seen: bool(seen.reason))
        assert "no Docker daemon answers" in waits.reason
        assert [info.kind for info in master.hellos()[0].facts.runtimes] == [RuntimeKind.PROCESS]


async def test_a_daemon_that_answers_with_errors_neither_ends_the_agent_nor_counts_as_empty(
    master: TestMaster, home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/version"):
            return web.json_response({"Version": "29", "ApiVersion": "1.47", "MinAPIVersion": "1.24"})
        return web.json_response({"message": "the disk of the daemon is broken"}, status=500)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(home.path / "d.sock")).start()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home.path}/d.sock")
    runtime = DockerRuntime(home)
    with pytest.raises(RuntimeUnavailable, match="the disk of the daemon is broken"):
        await runtime.units()
    assert await runtime.info() is None
    await runtime.close()
    master.envelope = master.seal_state(make_script("exec sleep 300"), generation=1)
    async with running(home):
        await master.until_instance("inst-1", lambda seen: bool(seen.unit_id))
        await master.until(lambda: len(master.metrics()) >= 1)
    await stop_engines(home, home.config())
    monkeypatch.undo()
    await runner.cleanup()


# ------------------------------------------------------------------------------------------------ process


async def test_a_process_whose_agent_died_before_it_was_written_down_is_found_again(home: AgentHome) -> None:
    spec = make_script("exec sleep 300")
    runtime = ProcessRuntime(home, home.config())
    unit = await runtime.start(spec, home.path, 0)
    (home.instance("inst-1") / "process.json").unlink()
    (found,) = await ProcessRuntime(home, home.config()).units()
    assert found == unit
    stranger = AgentHome(home.path.parent / "stranger")
    stranger.create()
    assert await ProcessRuntime(stranger, home.config()).units() == []


async def test_a_record_of_another_boot_never_kills_a_stranger_with_the_same_number(home: AgentHome) -> None:
    leader = subprocess.Popen(["sh", "-c", "sleep 300 & echo $!"], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    member = int(leader.stdout.readline())
    leader.wait()
    record = ProcessRecord(
        instance_id="inst-1",
        spec_hash="h",
        pid=leader.pid,
        born="00000000-0000-0000-0000-000000000000:17",
        port=1,
        started_at=time.time(),
        command=("old",),
    )
    home.instance("inst-1").mkdir(parents=True)
    (home.instance("inst-1") / "process.json").write_bytes(msgspec.json.encode(record))
    runtime = ProcessRuntime(home, home.config())
    (unit,) = await runtime.units()
    assert not unit.running
    try:
        ended = await runtime.collect(unit)
        assert ended is not None
        assert (ended.exit_code, ended.command) == (None, ("old",))
        assert is_alive(member)
    finally:
        os.kill(member, signal.SIGKILL)
    assert await runtime.units() == []


class BrokenStop(ProcessRuntime):
    """Fails in a way that nobody foresaw, until it is mended."""

    stops = 0
    mended = False

    async def stop(self, unit: Unit, grace_s: float) -> Ended | None:
        self.stops += 1
        if not self.mended:
            raise ValueError("nobody foresaw this")
        return await super().stop(unit, grace_s)


async def test_a_stop_that_fails_unforeseen_is_tried_again_but_never_in_a_tight_loop(home: AgentHome) -> None:
    identity = home.identity()
    assert identity is not None
    runtime, records = BrokenStop(home, home.config()), Records(home)
    unit = await runtime.start(make_script("exec sleep 300"), home.path, 0)
    store = Store(home.path, Network(identity, lambda: "", home.relay_pem))
    runtimes: dict[RuntimeKind, Runtime] = {RuntimeKind.PROCESS: runtime}
    nothing = DesiredState(server_id=identity.node_id, generation=1)
    supervisor = Supervisor(runtimes, records, Operations(runtimes, records, store), lambda: nothing)
    running_it = asyncio.create_task(supervisor.run())
    try:
        await until(lambda: runtime.stops >= 2)
        assert runtime.stops == 2, "a second apart"
        runtime.mended = True
        await until(lambda: not is_alive(int(unit.unit_id)))
        await until(lambda: supervisor.observed() == ())
        assert runtime.stops == 3
    finally:
        running_it.cancel()
        await asyncio.gather(running_it, return_exceptions=True)


async def test_what_an_engine_started_dies_with_it(home: AgentHome) -> None:
    runtime = ProcessRuntime(home, home.config())
    unit = await runtime.start(make_script("sleep 300 & echo $!; exit 3"), home.path, 0)
    output = home.instance("inst-1") / "output.log"
    await until(lambda: output.read_text().endswith("\n"))
    child = int(output.read_text())
    async with asyncio.timeout(5):
        while (await runtime.units())[0].running:
            await asyncio.sleep(0.02)
    ended = await runtime.collect(unit)
    assert ended is not None
    assert ended.exit_code == 3
    assert await runtime.collect(unit) is None
    await until(lambda: not psutil.pid_exists(child) or not is_alive(child))


async def test_the_environment_of_an_engine_is_its_own(home: AgentHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "hush")
    spec = make_script('echo "gpus=[$CUDA_VISIBLE_DEVICES] secret=[$SECRET_OF_THE_AGENT] {port} $WITH"; exec sleep 300')
    engine = msgspec.structs.replace(spec.engine, gpu_indexes=(1, 3), env={"WITH": "{model_dir}"})
    runtime = ProcessRuntime(home, home.config())
    unit = await runtime.start(msgspec.structs.replace(spec, engine=engine), home.path, 0)
    output = home.instance("inst-1") / "output.log"
    await until(lambda: output.read_text().endswith("\n"))
    assert output.read_text() == f"gpus=[1,3] secret=[] {unit.port} {home.path}\n"


async def test_a_program_that_is_not_here_is_failed_with_what_to_do(master: TestMaster, home: AgentHome) -> None:
    spec = make_script("")
    missing = msgspec.structs.replace(spec, engine=msgspec.structs.replace(spec.engine, program="no-such-engine"))
    master.envelope = master.seal_state(missing, generation=1)
    async with running(home):
        seen = await master.until_instance("inst-1", lambda seen: seen.state is InstanceState.FAILED)
    assert seen.reason.startswith("the program 'no-such-engine' is not on this server. Install it")


async def test_an_output_that_grew_too_long_is_cut_and_its_end_kept(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    with log.open("ab") as engine:
        engine.write(b"x" * LOG_LIMIT_BYTES + b"\nlast words\n")
        engine.flush()
        cut(log)
        engine.write(b"more\n")
        engine.flush()
    assert log.read_bytes() == b"more\n"
    assert (tmp_path / "output.1.log").read_bytes().endswith(b"\nlast words\n")


async def test_the_wished_port_is_taken_where_it_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port
