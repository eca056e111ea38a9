"""`python -m agent join | run | stop-engines | status`: the agent's command line. Logs are JSON lines on stderr."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
import time
from pathlib import Path

import msgspec
import structlog

from agent.errors import AgentError, HomeBusy
from agent.home import AgentHome
from agent.join import read_token
from agent.main import Agent, join_patiently, run_until_signal, stop_engines
from agent.records import Records
from agent.runtimes.process import ProcessRuntime
from wire.join import NodeIdentity

_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130
_JOIN_PATIENCE_S = 60.0
_LOCK_PATIENCE_S = 5.0


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 fine, 2 something that the operator has to put right (said on stderr), 130 interrupted."""
    arguments = _parser().parse_args(argv)
    _configure_logs()
    home = AgentHome(Path(arguments.home).absolute())
    try:
        if arguments.command is not _status:
            home.create()
        code: int = arguments.command(home, arguments)
    except AgentError as error:
        print(f"{error.message.rstrip('.')}. {error.remedy}", file=sys.stderr)
        return _EXIT_USAGE
    except OSError as error:
        print(f"{error}. Check the home folder and the ports of config.json.", file=sys.stderr)
        return _EXIT_USAGE
    except KeyboardInterrupt:  # while it waits for a master to join
        return _EXIT_INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent", description="Runs engines on this server.")
    commands = parser.add_subparsers(required=True)
    for name, command, text in (
        ("join", _join, "join this server to a master"),
        ("run", _run, "run the agent (joins first when it has no identity)"),
        ("stop-engines", _stop_engines, "stop every engine of this home; the agent must not run"),
        ("status", _status, "what this home is and runs"),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("--home", required=True, help="the agent's folder")
        if name in ("join", "run"):
            required = name == "join"
            sub.add_argument("--master", required=required, help="https://HOST:8443")
            sub.add_argument(
                "--token",
                default=os.environ.get("STOKEHOLD_JOIN_TOKEN"),
                help="join token, or @FILE with one (also: STOKEHOLD_JOIN_TOKEN)",
            )
            sub.add_argument("--name", default=socket.gethostname(), help="name of this server in the admin")
            sub.add_argument("--address", action="append", default=[], help="address others reach this server at")
    return parser


def _join(home: AgentHome, arguments: argparse.Namespace) -> int:
    identity = home.identity()
    if identity is not None:
        print(f"already joined as {identity.name} ({identity.node_id}) to {identity.master_url}")
        return 0
    with home.lock():
        identity = asyncio.run(_join_now(home, arguments, limit_s=0.0))
    print(f"joined as {identity.name} ({identity.node_id})")
    return 0


async def _join_now(home: AgentHome, arguments: argparse.Namespace, limit_s: float) -> NodeIdentity:
    if not arguments.master or not arguments.token:
        raise AgentError(
            "this home has not joined a master", remedy="Give --master and --token, or run `python -m agent join`."
        )
    return await join_patiently(
        home,
        master_url=arguments.master,
        token=read_token(arguments.token),
        name=arguments.name,
        addresses=tuple(arguments.address),
        limit_s=limit_s,
    )


def _run(home: AgentHome, arguments: argparse.Namespace) -> int:
    async def run() -> None:
        identity = home.identity() or await _join_now(home, arguments, _JOIN_PATIENCE_S)
        structlog.get_logger(__name__).info("agent.starting", server=identity.node_id, name=identity.name)
        await run_until_signal(Agent(home, identity, home.config()))

    with home.lock():
        # The loop is not closed in order: a thread in the middle of a long call (an image being pulled) would hold up
        # the exit, and there is nothing left that needs one.
        asyncio.new_event_loop().run_until_complete(run())
    return 0


def _stop_engines(home: AgentHome, arguments: argparse.Namespace) -> int:
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            with home.lock():
                count = asyncio.run(stop_engines(home, home.config()))
            break
        except HomeBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)  # an agent that was told to stop a moment ago
    print(f"{count} engine{'' if count == 1 else 's'} stopped")
    return 0


def _status(home: AgentHome, arguments: argparse.Namespace) -> int:
    identity = home.identity()
    if identity is None:
        print(f"{home.path} has not joined a master")
        return 0
    print(f"{identity.name} ({identity.node_id}), master {identity.master_url}")
    records = Records(home)
    processes = {unit.instance_id: unit for unit in asyncio.run(ProcessRuntime(home, home.config()).units())}
    for instance_id in sorted(records.known()):
        record, unit = records.get(instance_id), processes.get(instance_id)
        where = f"pid {unit.unit_id}, port {unit.port}" if unit is not None and unit.running else ""
        print(f"{instance_id}  {record.runtime}  starts {record.attempts}  ends {len(record.exits)}  {where}".rstrip())
    return 0


def _configure_logs() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(
                serializer=lambda value, **_: msgspec.json.encode(value, enc_hook=str).decode()
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # no waiting for threads in the middle of a call to Docker; see `_run`
