"""`up`: from nothing to an answer, step by step; and nothing left behind when a step fails."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import signal
import time
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

from config.home import Home
from config.launcher import checks, demo, http_calls, nodes, preparation
from config.launcher.block import block
from config.launcher.down import stop_everything
from config.launcher.errors import LauncherError
from config.launcher.installation import Installation
from config.launcher.supervision import Supervisor, end, orphans, start_supervisor
from config.launcher.terminal import Step, say, step

_CONTROL = ("master", "controller")
_BACKGROUND = ("worker", "beat")  # nothing waits for them: they load when the others have
_NODES = ("gateway", "agent")
_START_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 180.0
_TRIES_BEFORE_GIVING_UP = 4  # starts of one process that did not last


class _Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP."""


class _NoAnswer(Exception):
    """The demo does not answer, and waiting longer makes no sense."""


def up(installation: Installation, *, detach: bool, with_demo: bool, keep_engines: bool) -> int:
    """Start what does not run, print the block, and stay until interrupted (unless `detach`)."""
    checks.forget_foreign_environment()
    checks.check_home(installation.home)
    _raise_on_signals()
    with _one_start_at_a_time(installation.home):
        supervisor = Supervisor(installation.home)
        already = supervisor.alive()
        if already:
            _refuse_other_options(installation)
            say("Stokehold is running already.")
        else:
            checks.check_disk(installation.home)
            _stop_orphans(installation.home)
            checks.check_ports(installation.options)
            say(f"Starting Stokehold in {installation.home.path}")
        served_before = (installation.home.agent / "identity.json").exists()
        try:
            credentials = _start(installation, supervisor, with_demo)
        except BaseException as error:
            if not already:
                failed = not isinstance(error, _Interrupted)  # then engines that were kept may well serve
                _clean_up(installation, error, keep_engines or (served_before and failed))
            if isinstance(error, _Interrupted):
                return 130
            raise
    print(block(credentials, installation, foreground=not detach and not already), flush=True)
    if detach or already:
        return 0
    return _stay(installation, keep_engines)


# ------------------------------------------------------------------------------------------------ steps


def _start(installation: Installation, supervisor: Supervisor, with_demo: bool) -> dict[str, Any]:
    if not supervisor.alive():
        installation.save()
        with step("supervisor"):
            start_supervisor(installation)
    supervisor.start("valkey")
    parts = demo.find_parts() if with_demo else None
    if parts:
        demo.tell_agent(installation, parts)
    # What has an identity serves at once from its last state, while the master is still loading.
    supervisor.start(*(name for name in _NODES if (installation.home.path / name / "identity.json").exists()))
    credentials = _prepare(installation)
    supervisor.start(*_CONTROL)
    version = _import_demo(parts) if parts and demo.wanted(credentials) else None
    with step("master") as shown:
        _wait_for(installation.home, shown, "master", f"{installation.master_url}/healthz")
    supervisor.start(*_BACKGROUND)
    missing = tuple(name for name in _NODES if not nodes.joined(installation, name))
    if missing:
        with step("joining this machine's " + " and ".join(reversed(missing))):
            nodes.join_nodes(installation, missing, dt.datetime.now(dt.UTC))
    supervisor.start(*_NODES)
    if version is not None:
        with step("agent") as shown:  # first: else the deployment would have no place, and say so
            _wait(installation.home, shown, nodes.any_server_reports, "agent", _START_TIMEOUT_S)
        _deploy_demo(installation, version, credentials)
    with step("gateway") as shown:
        _wait_for(installation.home, shown, "gateway", f"{installation.gateway_url}/readyz")
    with step("controller") as shown:
        _wait_for(installation.home, shown, "controller", f"{installation.master_url}/readyz")
    if version is not None:
        _wait_for_answer(installation, credentials)
    elif with_demo:
        _say_why_no_demo(parts is not None)
    with step("worker and beat") as shown:
        _wait(installation.home, shown, lambda: _all_run(supervisor), "worker", _START_TIMEOUT_S)
    return credentials


def _prepare(installation: Installation) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC)
    with step("database") as shown:
        shown.detail("loading")
        preparation.use_django(installation)
        preparation.migrate(installation.home, shown.detail)
        preparation.ensure_ca(now)
        return preparation.ensure_admin(installation)


def _import_demo(parts: demo.DemoParts) -> Any:
    with step(f"model {demo.MODEL}"):
        return demo.import_weights(parts, dt.datetime.now(dt.UTC))


def _deploy_demo(installation: Installation, version: Any, credentials: dict[str, Any]) -> None:
    now = dt.datetime.now(dt.UTC)
    with step("deployment and key"):
        demo.deploy(installation, version, now)
        credentials |= {"api_key": demo.ensure_key(credentials, now), "model": demo.MODEL}
        preparation.save_credentials(installation.home, credentials)


def _wait_for_answer(installation: Installation, credentials: dict[str, Any]) -> None:
    """Until a real answer has come through the gateway.

    A demo that does not answer stops nothing: the rest is there, and its pages show why.
    """
    body = {"model": demo.MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hi"}]}
    last = ""

    def answered() -> bool:
        nonlocal last
        try:
            http_calls.ask(credentials["gateway_base"], credentials["api_key"], body)
        except urllib.error.HTTPError as error:
            last = http_calls.problem_of(error)
            shown.detail(demo.standing())
            return False
        except (OSError, ValueError) as error:
            last = str(error)
            return False
        return True

    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    restarts_before = demo.restarts()

    def decided() -> bool:
        if answered():
            return True
        if demo.restarts() - restarts_before >= _TRIES_BEFORE_GIVING_UP or time.monotonic() > deadline:
            raise _NoAnswer(f"the demo model does not answer: {demo.standing()} ({last})")
        return False

    try:
        with step("first answer") as shown:
            _wait(installation.home, shown, decided, "agent", _ANSWER_TIMEOUT_S * 2)
    except _NoAnswer as error:
        say(f"  ! {error}")


def _all_run(supervisor: Supervisor) -> bool:
    processes = supervisor.processes()
    return bool(processes) and all(process.state == "RUNNING" for process in processes)


def _say_why_no_demo(parts_found: bool) -> None:
    if parts_found:
        say("  · the demo deployment was stopped or deleted: left as it is")
    else:
        say(
            "  · no demo: neither its packages nor a llama-server on PATH are here; "
            "import a model and deploy it in the admin"
        )


# ------------------------------------------------------------------------------------------------ waiting


def _wait_for(home: Home, shown: Step, process: str, url: str) -> None:
    _wait(home, shown, lambda: http_calls.answers(url), process, _START_TIMEOUT_S)


def _wait(home: Home, shown: Step, done: Callable[[], bool], suspect: str, timeout_s: float) -> None:
    """Until `done`. Gives up when a process does not stay up, or after `timeout_s`, with its last lines."""
    supervisor = Supervisor(home)
    deadline = time.monotonic() + timeout_s
    failed_starts: dict[str, set[float]] = {}
    while not done():
        for process in supervisor.processes():
            if process.state in ("BACKOFF", "FATAL"):
                starts = failed_starts.setdefault(process.name, set())
                starts.add(process.started_at)
                shown.detail(f"{process.name} ended, trying again")
                if len(starts) >= _TRIES_BEFORE_GIVING_UP:
                    raise LauncherError(
                        f"{process.name} does not stay up; its last words:", supervisor.tail(process.name)
                    )
        if time.monotonic() > deadline:
            raise LauncherError(
                f"{suspect} is not ready after {timeout_s:.0f} s; its last words:", supervisor.tail(suspect)
            )
        time.sleep(0.1)


def _stay(installation: Installation, keep_engines: bool) -> int:
    """In the foreground: until interrupted. A supervisor that was killed is started again, with all it had."""
    home = installation.home
    try:
        while True:
            time.sleep(1)
            if Supervisor(home).alive() or not home.supervisor_pidfile.exists():
                if not home.supervisor_pidfile.exists():
                    say("Stokehold was stopped.")
                    return 0
                continue
            say("the supervisor is gone: starting it again")
            _stop_orphans(home)
            start_supervisor(installation).start("valkey", *_CONTROL, *_BACKGROUND, *_NODES)
    except _Interrupted:
        _ignore_signals()
        say("")
        with step("stopping" + (", engines go on" if keep_engines else "")):
            stop_everything(installation, keep_engines=keep_engines)
        return 0


def _clean_up(installation: Installation, error: BaseException, keep_engines: bool) -> None:
    _ignore_signals()
    if not isinstance(error, LauncherError):
        say("")
    try:
        with step("stopping what was started"):
            stop_everything(installation, keep_engines=keep_engines)
    except LauncherError as second:
        say(f"stokehold: {second}")  # the first error is the one to raise


def _stop_orphans(home: Home) -> None:
    left = orphans(home)
    if left:
        with step(f"stopping {len(left)} processes that a killed supervisor left"):
            end(left)


def _refuse_other_options(installation: Installation) -> None:
    from config.launcher.installation import Options

    running = Options.resolve(installation.home.options(), {})
    if running != installation.options:
        raise LauncherError(
            "Stokehold is running with other options: `./stokehold down` first, then start it with these."
        )


@contextlib.contextmanager
def _one_start_at_a_time(home: Home) -> Iterator[None]:
    with (home.path / ".up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another start is under way: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _raise_on_signals() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise _Interrupted

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
