"""The command line, signals, and death without warning."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest

from gateway.home import Home, own_host_id
from tests.fakes.engine import FakeEngine, running_engine
from tests.gateway.master import FakeMaster, make_feed_key, make_project, make_route, make_target, running_master, until
from tests.gateway.processes import answers, finish, start
from tests.gateway.world import CHAT
from tests.ports import free_port

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def surroundings() -> AsyncIterator[tuple[FakeMaster, FakeEngine, aiohttp.ClientSession]]:
    """Master and engine; the client carries the key."""
    async with running_master() as master, running_engine(FakeEngine()) as engine:
        key, secret = make_feed_key()
        routes = (make_route("public", make_target(engine.port, own_host_id())),)
        master.snapshot = msgspec.structs.replace(
            master.snapshot, projects=(make_project(),), keys=(key,), routes=routes
        )
        async with aiohttp.ClientSession(headers={"authorization": f"Bearer {secret}"}) as client:
            yield master, engine, client


ASK = {"model": "public", "messages": [{"role": "user", "content": "a secret prompt"}]}


async def test_join_and_run_by_command_line(tmp_path: Path) -> None:
    async with surroundings() as (master, _, client):
        home, port = str(tmp_path / "gw"), free_port()
        arguments = ("--master", master.url, "--token", str(master.token), "--home", home)
        code, errors = await finish(await start("join", *arguments))
        assert (code, errors) == (0, f"Joined {master.url} as gw.\n")
        assert stat.S_IMODE(Home(Path(home)).identity_file.stat().st_mode) == 0o600
        code, errors = await finish(await start("join", *arguments))
        assert code == 0
        assert "Already joined" in errors
        gateway = await start("run", "--home", home, "--port", str(port))
        await answers(f"http://127.0.0.1:{port}", client)
        code, errors = await finish(await start("run", "--home", home, "--port", str(port)))
        assert code == 1
        assert errors.count("\n") == 1
        assert "address already in use" in errors
        async with client.post(f"http://127.0.0.1:{port}{CHAT}", json=ASK) as response:
            assert response.status == 200
        gateway.send_signal(signal.SIGTERM)
        code, errors = await finish(gateway)
        assert code == 0
        lines = [json.loads(line) for line in errors.splitlines()]
        [access] = [line for line in lines if line["event"] == "request"]
        assert access["status"] == 200
        assert access["key"].count("-") == 2
        assert "secret prompt" not in errors
        assert sum(row.requests for row in master.rows) == 1


@pytest.mark.parametrize(
    ("token", "words"),
    [("nonsense", "not a join token"), ("other CA", "another CA"), ("unknown", "not known")],
)
async def test_a_bad_join_is_one_sentence_and_a_remedy(tmp_path: Path, token: str, words: str) -> None:
    async with running_master() as master, running_master() as other:
        text = {"nonsense": "x", "other CA": str(other.token), "unknown": str(master.token).replace("abcd", "dcba")}
        arguments = ("--master", master.url, "--token", text[token], "--home", str(tmp_path))
        code, errors = await finish(await start("join", *arguments))
        assert code == 2
        assert words in errors
        assert errors.count("\n") == 1
        assert not list(tmp_path.iterdir())


async def test_a_token_may_be_in_a_file_and_a_missing_file_is_named(tmp_path: Path) -> None:
    async with running_master() as master:
        (tmp_path / "token").write_text(f"{master.token}\n")
        arguments = ("--master", master.url, "--home", str(tmp_path / "home"))
        code, errors = await finish(await start("join", *arguments, "--token", f"@{tmp_path / 'nowhere'}"))
        assert code == 2
        assert "nowhere" in errors
        code, errors = await finish(await start("join", *arguments, "--token", f"@{tmp_path / 'token'}"))
        assert code == 0, errors


async def test_run_without_an_identity_says_what_to_do(tmp_path: Path) -> None:
    code, errors = await finish(await start("run", "--home", str(tmp_path)))
    assert code == 2
    assert "join" in errors
    code, errors = await finish(
        await start("join", "--master", f"https://127.0.0.1:{free_port()}", "--token", "x", "--home", str(tmp_path))
    )
    assert code == 2


async def test_sigterm_lets_running_requests_end(tmp_path: Path) -> None:
    async with surroundings() as (master, engine, client):
        master.join(Home(tmp_path))
        port = free_port()
        gateway = await start("run", "--home", str(tmp_path), "--port", str(port), "--no-access-log")
        await answers(f"http://127.0.0.1:{port}", client)
        engine.pause_s = 0.2
        async with client.post(f"http://127.0.0.1:{port}{CHAT}", json={**ASK, "stream": True}) as response:
            await response.content.readany()
            gateway.send_signal(signal.SIGTERM)
            rest = await response.read()
        assert b"[DONE]" in rest
        assert (await finish(gateway))[0] == 0
        assert [row.completion_tokens for row in master.rows] == [5]


async def test_usage_is_counted_once_over_kill_9(tmp_path: Path) -> None:
    async with surroundings() as (master, _, client):
        master.join(Home(tmp_path))
        master.acknowledges = False
        port, answered = free_port(), 0
        base = f"http://127.0.0.1:{port}"
        for _ in range(3):
            gateway = await start("run", "--home", str(tmp_path), "--port", str(port), "--no-access-log")
            await answers(base, client)
            for _ in range(20):
                async with client.post(base + CHAT, json=ASK) as response:
                    await response.read()
                    assert response.status == 200
                    answered += 1
            written = answered

            def on_disk(written: int = written) -> bool:
                return _requests_on_disk(tmp_path / "journal") == written

            await until(on_disk, what="the usage on disk")
            gateway.kill()
            await finish(gateway)
        master.acknowledges = True
        gateway = await start("run", "--home", str(tmp_path), "--port", str(port), "--no-access-log")
        await until(lambda: sum(row.requests for row in master.rows) >= answered, within_s=15, what="all usage")
        await asyncio.sleep(0.5)
        assert sum(row.requests for row in master.rows) == answered
        gateway.terminate()
        await finish(gateway)


def _requests_on_disk(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        try:
            text = path.read_text()
        except FileNotFoundError:
            return -1
        if path.suffix == ".open":
            total += sum(1 for line in text.split("\n") if line.startswith("[") and not line.startswith('["'))
        elif path.suffix == ".batch":
            total += sum(row["requests"] for row in json.loads(text)["rows"])
    return total
