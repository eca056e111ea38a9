"""This machine's own agent and gateway: let them join, and stop the agent's engines."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
import socket
import subprocess

from config.home import SOURCE_DIR
from config.launcher.errors import LauncherError
from config.launcher.installation import Installation, python


def joined(installation: Installation, role: str) -> bool:
    """Whether this home's agent or gateway has an identity that the database knows.

    An identity that it does not know (another database was chosen) is taken away, so that it can join anew.

    Raises:
        LauncherError: it was revoked.
    """
    from fleet.models import Gateway, Server

    folder = installation.home.agent if role == "agent" else installation.home.gateway
    identity = folder / "identity.json"
    if not identity.exists():
        return False
    rows = (Server if role == "agent" else Gateway).objects.filter(pk=json.loads(identity.read_text())["node_id"])
    node = rows.first()
    if node is None:
        _forget(installation, role)
        return False
    if node.revoked_at is not None:
        raise LauncherError(
            f"the {role} of this home ({node.name}) was revoked: remove {identity} to let it join anew."
        )
    return True


def any_server_reports() -> bool:
    """Whether a server is connected and has said what it is."""
    from fleet.models import ServerState

    return ServerState.objects.filter(connected_since__isnull=False, facts__isnull=False).exists()


def _forget(installation: Installation, role: str) -> None:
    """Take away an identity of another database, and for an agent also the engines and states that came from there."""
    if role == "gateway":
        (installation.home.gateway / "identity.json").unlink()
        return
    stop_engines(installation)
    for entry in installation.home.agent.iterdir():
        if entry.name != "config.json":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def stop_engines(installation: Installation) -> None:
    """Stop and remove every engine of this home.

    Raises:
        LauncherError: some could not be stopped.
    """
    if not installation.home.agent.exists():
        return
    done = subprocess.run(
        [python(), "-P", "-m", "agent", "stop-engines", "--home", str(installation.home.agent)],
        env=installation.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        raise LauncherError("not every engine could be stopped:", tuple(done.stderr.strip().splitlines()[-10:]))


def join_nodes(installation: Installation, roles: tuple[str, ...], now: dt.datetime) -> None:
    """Join this machine's agent and gateway as any other machine would: over the link port, with a token each."""
    from fleet.services import create_join_token

    joining = {}
    for role in roles:
        token = create_join_token(role=role, ttl=dt.timedelta(minutes=5), note="this machine, by up", now=now)
        home = installation.home.agent if role == "agent" else installation.home.gateway
        command = [python(), "-P", "-m", role, "join", "--master", installation.link_url, "--token", token]
        command += ["--home", str(home), "--name", _free_name(role)]
        joining[role] = subprocess.Popen(
            command,
            env=installation.environment(),
            cwd=SOURCE_DIR,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    outcomes = {role: (process.communicate(timeout=60)[0], process.returncode) for role, process in joining.items()}
    for role, (output, code) in outcomes.items():
        if code:
            raise LauncherError(f"the {role} of this machine could not join:", tuple(output.splitlines()[-10:]))


def _free_name(role: str) -> str:
    """This machine's name, with a number when another node has it already."""
    from fleet.models import Gateway, Server

    base = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")[:50] or "local"
    taken = set((Server if role == "agent" else Gateway).objects.values_list("name", flat=True))
    names = (base if number == 1 else f"{base}-{number}" for number in range(1, 1000))
    return next(name for name in names if name not in taken)
