"""What every client is pointed at: a gateway with two real engines, and keys that are good for this and that."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.home import own_host_id
from tests.gateway.master import make_feed_key, make_route, make_target
from tests.gateway.test_llama_server import llama_server
from tests.gateway.world import World, running_world
from wire.feed import FeedRoute, Limits

HERE = Path(__file__).parent
LOCK = HERE / "clients/requirements.txt"


@dataclass
class Service:
    """`chat` and `embed` are real engines; `down` is known and has no instance.

    `caller` stands for a model that calls tools, which the real weights at hand are too small for.
    """

    world: World
    chat: FeedRoute
    used_up: str
    """A key whose one request a minute is gone."""
    narrow: str
    """A key that may use `embed` only."""

    @property
    def base_url(self) -> str:
        return f"{self.world.base}/v1"

    def environment(self) -> dict[str, str]:
        """For programs: nothing of a real account of whoever runs the tests."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "LITELLM_"))}
        return {
            **kept,
            "STOKEHOLD_BASE_URL": self.base_url,
            "STOKEHOLD_KEY": self.world.secret,
            "STOKEHOLD_KEY_USED_UP": self.used_up,
            "STOKEHOLD_KEY_NARROW": self.narrow,
            "LANGSMITH_TRACING": "false",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # the list it ships with: no look at the internet
            "TIKTOKEN_CACHE_DIR": tempfile.gettempdir(),
        }

    async def run(self, *command: str, cwd: Path = HERE) -> None:
        """Run a client program; its output is the failure's text."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=self.environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()


@asynccontextmanager
async def running_service(folder: Path) -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(running_world(folder))
        chat_port = await stack.enter_async_context(llama_server("--jinja"))
        embed_port = await stack.enter_async_context(llama_server("--embeddings", "--pooling", "mean"))
        here = own_host_id()
        chat = make_route(
            "chat",
            make_target(chat_port, here, engine_model="smol"),
            max_context_tokens=1024,
            endpoints=("chat", "completions", "responses", "messages", "tokenize"),
        )
        embed = make_route(
            "embed", make_target(embed_port, here, engine_model="smol"), endpoints=("embeddings", "tokenize")
        )
        used_up, used_up_secret = make_feed_key(limits=Limits(requests_per_minute=1))
        narrow, narrow_secret = make_feed_key(models=("embed",))
        caller = make_route("caller", make_target(world.engine.port, here), endpoints=("chat",))
        down = make_route("down", reason="no server fits")
        await world.push(routes=(chat, embed, caller, down), keys=(used_up, narrow))
        ask = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        async with world.post(ask, secret=used_up_secret) as answer:
            assert answer.status == 200
        yield Service(world, chat, used_up_secret, narrow_secret)


def client_python() -> str:
    """Interpreter with LangChain and LiteLLM; made at first use, shared by all later runs with the same lock."""
    key = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stokehold-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"clients-{key}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests run side by side
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _quietly(sys.executable, "-m", "venv", str(folder))
            python, wanted = str(folder / "bin/python"), ("--require-hashes", "-r", str(LOCK))
            if uv := shutil.which("uv"):
                _quietly(uv, "pip", "install", "--python", python, *wanted)
            else:
                _quietly(python, "-m", "pip", "install", "--disable-pip-version-check", *wanted)
            (folder / "ready").touch()
    return str(folder / "bin/python")


def node_project(folder: Path) -> Path:
    """A copy of the Node client with its packages installed from the lock."""
    project = folder / "node"
    shutil.copytree(HERE / "node", project, ignore=shutil.ignore_patterns("node_modules"))
    npm = shutil.which("npm")
    assert npm is not None, "npm is missing: apt-get install nodejs npm"
    _quietly(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=project)
    return project


def _quietly(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
