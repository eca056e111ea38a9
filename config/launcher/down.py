"""`down`: stop everything of one home, in whatever state it is found."""

from __future__ import annotations

import contextlib
import http.client
import time
import xmlrpc.client

import psutil

from config.launcher.errors import LauncherError
from config.launcher.installation import Installation
from config.launcher.nodes import stop_engines
from config.launcher.supervision import Supervisor, end, orphans
from config.launcher.terminal import say, step

_SHUTDOWN_TIMEOUT_S = 40.0


def down(installation: Installation, *, keep_engines: bool) -> int:
    """Stop the processes, and the engines unless `keep_engines`. Nothing running is fine."""
    running = Supervisor(installation.home).alive() or bool(orphans(installation.home))
    with step("stopping" + (", engines go on" if keep_engines else "")):
        stop_everything(installation, keep_engines=keep_engines)
    say("Stokehold is stopped." if running else "Nothing was running.")
    return 0


def stop_everything(installation: Installation, *, keep_engines: bool) -> None:
    """The gateway first (nothing new comes in), then the agent, its engines, and the rest.

    Raises:
        LauncherError: some engine could not be stopped; everything else was.
    """
    home = installation.home
    supervisor = Supervisor(home)
    problem: LauncherError | None = None
    if supervisor.alive():
        for name in ("gateway", "agent"):
            supervisor.stop(name)
    else:
        end(orphans(home))
    if not keep_engines:
        try:
            stop_engines(installation)
        except LauncherError as error:
            problem = error
    _shut_down(supervisor)
    end(orphans(home))
    for left in (home.supervisor_socket, home.supervisor_pidfile, home.valkey_socket):
        left.unlink(missing_ok=True)
    if problem:
        raise problem


def _shut_down(supervisor: Supervisor) -> None:
    """Ask the supervisor to stop all it has and itself, and wait for its end."""
    try:
        process = psutil.Process(supervisor.pid())
        supervisor.shutdown()
    except (OSError, http.client.HTTPException, xmlrpc.client.Error, psutil.NoSuchProcess):
        return
    deadline = time.monotonic() + _SHUTDOWN_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(timeout=0.2)
            return
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return
