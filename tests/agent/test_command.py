"""`python -m agent` as an operator types it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from agent.errors import JoinFailed
from agent.home import AgentHome
from agent.join import join as agent_join
from agent.main import stop_engines
from tests.agent.conftest import ROOT, agent_process, is_alive, make_llama, make_script, until
from tests.agent.master import SERVER_ID, TestMaster
from tests.ports import free_port
from wire.engine import RuntimeKind
from wire.messages import InstanceState

pytestmark = pytest.mark.asyncio
OTHER_FINGERPRINT = "0" * 64


@dataclass
class Done:
    code: int
    out: str
    said: str
    """What an operator reads on stderr: without the log's JSON lines."""


async def agent(*arguments: str) -> Done:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "agent", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    said = "\n".join(line for line in err.decode().splitlines() if not line.startswith("{"))
    return Done(process.returncode or 0, out.decode(), said)


async def join(master: TestMaster, home: Path, *, token: str | None = None, url: str | None = None) -> Done:
    arguments = ("--master", url or master.url, "--token", token or master.token)
    return await agent("join", *arguments, "--home", str(home), "--name", "two", "--address", "127.0.0.1")


async def test_a_server_joins_once_and_says_so_the_second_time(master: TestMaster, folder: Path) -> None:
    token_file = folder / "token"
    token_file.write_text(master.token + "\n")
    first = await join(master, folder / "a", token=f"@{token_file}")
    assert (first.code, first.out) == (0, f"joined as two ({SERVER_ID})\n")
    assert stat.S_IMODE((folder / "a" / "identity.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o700
    second = await join(master, folder / "a")
    assert (second.code, second.out) == (0, f"already joined as two ({SERVER_ID}) to {master.url}\n")
    status = await agent("status", "--home", str(folder / "a"))
    assert status.out == f"two ({SERVER_ID}), master {master.url}\n"


async def test_a_join_that_fails_is_one_sentence_and_exit_code_2(master: TestMaster, folder: Path) -> None:
    master.tokens_left = 0
    nobody = f"https://127.0.0.1:{free_port()}"
    cases = {
        "the join token was used. Make a new one.": join(master, folder / "a"),
        "the file /nowhere with the join token cannot be read": join(master, folder / "b", token="@/nowhere"),
        f"{nobody} could not be reached": join(master, folder / "e", url=nobody),
        "another CA than the one the join token was made by: nothing was sent to it. Check": join(
            master, folder / "h", token=master.token[:-64] + OTHER_FINGERPRINT
        ),
    }
    for sentence, done in zip(cases, await asyncio.gather(*cases.values()), strict=True):
        assert sentence in done.said
        assert len(done.said.splitlines()) == 1, done.said
        assert done.code == 2
    assert not list(folder.glob("?/identity.json"))


@pytest.mark.parametrize(
    ("token", "url", "sentence"),
    [
        ("hello", None, "this is not a join token"),
        ("stk-join-abcdefgh-" + "t" * 43 + "-{fingerprint}", None, "the join token was used"),
        (None, "http://127.0.0.1", "'http://127.0.0.1' is not an address of a master"),
        (None, "https://127.0.0.1:99999", "is not an address of a master"),
        (None, "https://127.0.0.1/admin", "is not an address of a master"),
        (None, "https://master.stokehold.internal:8443", "is a name inside certificates, not an address"),
    ],
)
async def test_what_cannot_be_joined_is_named_and_leaves_no_identity(
    master: TestMaster, folder: Path, token: str | None, url: str | None, sentence: str
) -> None:
    home = AgentHome(folder / "a")
    home.create()
    text = (token or master.token).replace("{fingerprint}", master.token[-64:])
    with pytest.raises(JoinFailed, match=re.escape(sentence)) as caught:
        await agent_join(home, master_url=url or master.url, token_text=text, name="two", addresses=())
    assert caught.value.remedy
    assert not caught.value.retry
    assert home.identity() is None


async def test_nothing_is_sent_to_a_master_with_a_foreign_ca(master: TestMaster, folder: Path) -> None:
    done = await join(master, folder / "a", token=master.token[:-64] + OTHER_FINGERPRINT)
    assert done.code == 2
    assert master.joins_asked == 0
    assert master.tokens_left == 1


async def test_a_home_that_has_not_joined_is_said_so(folder: Path) -> None:
    done = await agent("run", "--home", str(folder / "a"))
    assert done.code == 2
    assert done.said.startswith("this home has not joined a master. Give --master and --token")
    status = await agent("status", "--home", str(folder / "b"))
    assert (status.code, status.out) == (0, f"{folder / 'b'} has not joined a master\n")
    assert not (folder / "b").exists(), "a question makes nothing"


async def test_a_wrong_config_file_is_named(home: AgentHome) -> None:
    (home.path / "config.json").write_text('{"progams": {}}')
    done = await agent("run", "--home", str(home.path))
    (home.path / "config.json").unlink()
    assert done.code == 2
    assert "config.json cannot be used: Object contains unknown field `progams`" in done.said


async def test_two_agents_on_one_home_are_refused(master: TestMaster, home: AgentHome) -> None:
    async with agent_process(home) as first:
        await master.until(lambda: bool(master.hellos()))
        done = await agent("run", "--home", str(home.path))
        assert done.code == 2
        assert f"another agent (pid {first.process.pid}) uses {home.path}. Stop the other agent first" in done.said
        assert first.process.poll() is None


async def test_an_agent_ends_at_once_on_sigterm_with_exit_code_0(master: TestMaster, home: AgentHome) -> None:
    async with agent_process(home) as running:
        await master.until(lambda: bool(master.hellos()))
        assert await running.end(signal.SIGTERM, timeout_s=2) == 0


async def test_run_joins_first_and_waits_for_a_master_that_is_not_up_yet(master: TestMaster, folder: Path) -> None:
    await master.stop()
    home = AgentHome(folder / "a")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "agent", "run", "--home", str(home.path), "--master", master.url, "--token", master.token),
        cwd=ROOT,
        stderr=(folder / "log").open("wb"),
    )
    try:
        await until(lambda: b"join.waits" in (folder / "log").read_bytes())
        await master.start()
        await master.until(lambda: bool(master.hellos()), 10)
    finally:
        process.kill()
        await process.wait()


def _heed_ctrl_c() -> None:
    """A shell starts its background jobs with SIGINT ignored, and all that they start inherits it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def test_waiting_for_a_master_is_broken_off_by_ctrl_c_without_a_traceback(folder: Path) -> None:
    nobody, token = f"https://127.0.0.1:{free_port()}", f"stk-join-abcdefgh-{'s' * 43}-{OTHER_FINGERPRINT}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "agent", "run", "--home", str(folder / "a"), "--master", nobody, "--token", token),
        cwd=ROOT,
        stderr=(folder / "log").open("wb"),
        preexec_fn=_heed_ctrl_c,
    )
    await until(lambda: b"join.waits" in (folder / "log").read_bytes())
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 130
    assert "Traceback" not in (folder / "log").read_text()


@pytest.mark.docker
async def test_stop_engines_stops_and_removes_every_engine_of_this_home(
    master: TestMaster, home: AgentHome, llama_image: str
) -> None:
    specs = [
        make_script("exec sleep 300", instance_id="plain"),
        make_script("trap '' TERM; sleep 300 & wait; sleep 300", instance_id="stubborn", stop_grace_s=0.2),
        make_llama(master, RuntimeKind.DOCKER, instance_id="boxed"),
    ]
    master.envelope = master.seal_state(*specs, generation=1)
    async with agent_process(home) as running:
        boxed = await master.until_instance("boxed", lambda seen: seen.state is InstanceState.READY)
        plain, stubborn = master.instance("plain"), master.instance("stubborn")
        assert plain is not None
        assert stubborn is not None
        busy = await agent("stop-engines", "--home", str(home.path))
        assert busy.code == 2
        assert "another agent" in busy.said
        await running.end(signal.SIGKILL)
    assert is_alive(int(plain.unit_id))
    done = await agent("stop-engines", "--home", str(home.path))
    assert (done.code, done.out) == (0, "3 engines stopped\n")
    assert not is_alive(int(plain.unit_id))
    assert not is_alive(int(stubborn.unit_id))
    assert not living_members(int(stubborn.unit_id)), "nor anything that it started"
    assert boxed.unit_id not in await containers()
    assert await stop_engines(home, home.config()) == 0
    async with agent_process(home):
        again = await master.until_instance("plain", lambda seen: seen.unit_id != plain.unit_id and bool(seen.unit_id))
    assert again.restarts == 0, "it was stopped on purpose"
    await agent("stop-engines", "--home", str(home.path))


def living_members(group: int) -> list[int]:
    """Pids of a process group, without those that only wait to be reaped."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members


async def containers() -> str:
    process = await asyncio.create_subprocess_exec("docker", "ps", "-aq", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode()
