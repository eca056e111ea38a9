"""`python -m gateway join` and `python -m gateway run`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import socket
import sys
from ipaddress import ip_network
from pathlib import Path

import msgspec
import structlog
import uvloop

from gateway.home import Home
from gateway.joining import JoinFailed, join_master
from gateway.parent import Parent
from gateway.server import Gateway, Listen, PortInUse
from gateway.service import Settings
from wire.join import NodeIdentity

_GC_THRESHOLD = 50_000
"""Requests make few cycles: looking for them every 700 objects (Python's default) costs more than it frees."""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 well, 1 cannot run, 2 bad arguments or not joined."""
    options = _parser().parse_args(argv)
    options.arguments = (sys.argv[1:] if argv is None else argv)[1:]
    _log_json()
    home = Home(Path(options.home).absolute())
    try:
        if options.command == "join":
            return _join(home, options)
        return _run(home, options)
    except msgspec.DecodeError as error:
        return _fail(f"{home.identity_file} is damaged ({error}).", "Remove it and join again.")
    except OSError as error:
        return _fail(f"{error.filename or home.path}: {error.strerror or error}.", "Check the folder and its owner.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gateway", description="Stokehold's OpenAI-compatible gateway.")
    commands = parser.add_subparsers(dest="command", required=True)
    join = commands.add_parser("join", help="join a master; harmless when joined already")
    run = commands.add_parser("run", help="serve (joins first when --master and --token are given)")
    for command, needed in ((join, True), (run, False)):
        command.add_argument("--home", required=True, help="folder for identity, state and journal")
        command.add_argument("--master", required=needed, help="https://HOST:8443")
        command.add_argument(
            "--token",
            required=needed and "STOKEHOLD_JOIN_TOKEN" not in os.environ,
            default=os.environ.get("STOKEHOLD_JOIN_TOKEN"),
            help="join token, or @FILE with one (also: STOKEHOLD_JOIN_TOKEN)",
        )
        command.add_argument("--name", default=None, help="name in the admin (default: host name)")
        command.add_argument("--address", action="append", default=[], help="how others reach this gateway; repeatable")
    run.add_argument("--host", default="127.0.0.1")
    run.add_argument("--port", type=int, default=8080)
    run.add_argument("--tls-cert", help="PEM file: serve HTTPS")
    run.add_argument("--tls-key", help="PEM file")
    run.add_argument("--max-body-mb", type=int, default=20)
    run.add_argument("--queue-length", type=int, default=1000, help="requests that wait for a model when it is full")
    run.add_argument("--queue-seconds", type=float, default=30.0, help="how long they wait at most")
    run.add_argument("--cors-origin", action="append", default=[], help="allow this origin (or *); repeatable")
    run.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        type=ip_network,
        metavar="CIDR",
        help="believe X-Forwarded-For of this proxy (for keys that are limited to networks); repeatable",
    )
    run.add_argument("--processes", type=_count, default=1, help="processes on this port; above 1 with --redis")
    run.add_argument(
        "--redis",
        default=os.environ.get("STOKEHOLD_GATEWAY_REDIS", ""),
        metavar="URL",
        help="count quotas over all gateways here: redis://, rediss:// or unix:// (also: STOKEHOLD_GATEWAY_REDIS)",
    )
    run.add_argument("--metrics-port", type=int, help="serve /metrics there instead of with the API")
    run.add_argument("--metrics-host", default="127.0.0.1")
    run.add_argument("--child", type=int, help=argparse.SUPPRESS)
    run.add_argument("--no-access-log", action="store_true")
    return parser


def _join(home: Home, options: argparse.Namespace) -> int:
    identity = home.identity()
    if identity is not None:
        print(f"Already joined to {identity.master_url} as {identity.name}.", file=sys.stderr)
        return 0
    name = options.name or f"gateway-{socket.gethostname()}"
    addresses = tuple(options.address) or (socket.gethostname(),)
    try:
        identity = asyncio.run(join_master(home, options.master, options.token, name, addresses))
    except JoinFailed as error:
        return _fail(error.message, error.remedy, code=2)
    print(f"Joined {identity.master_url} as {identity.name}.", file=sys.stderr)
    return 0


def _run(home: Home, options: argparse.Namespace) -> int:
    if bool(options.tls_cert) != bool(options.tls_key):
        return _fail("--tls-cert and --tls-key belong together.", "Give both or none.", code=2)
    if home.identity() is None:
        if not (options.master and options.token):
            return _fail(
                f"{home.path} has not joined a master yet.",
                "Run `python -m gateway join --master URL --token TOKEN --home DIR` first.",
                code=2,
            )
        if code := _join(home, options):
            return code
    identity = home.identity()
    if identity is None:
        return _fail("The identity is gone.", "Join again.", code=2)
    if options.processes > 1 and not options.redis:
        return _fail("--processes above 1 needs --redis.", "Quotas of all processes are counted there.", code=2)
    settings = Settings(
        max_body_bytes=options.max_body_mb * 1024 * 1024,
        queue_length=max(1, options.queue_length),
        queue_s=options.queue_seconds,
        cors_origins=tuple(options.cors_origin),
        access_log=not options.no_access_log,
        trusted_proxies=tuple(options.trusted_proxy),
        redis_url=options.redis,
        metrics_apart=options.metrics_port is not None,
    )
    listen = Listen(
        options.host, options.port, options.tls_cert, options.tls_key, options.metrics_host, options.metrics_port
    )
    gc.freeze()  # what is loaded by now stays: no need to look at it again and again
    gc.set_threshold(_GC_THRESHOLD, 20, 100)
    try:
        if options.processes > 1 and options.child is None:
            uvloop.run(Parent(home, identity, listen, options.processes, options.arguments).run())
        else:
            uvloop.run(_serve(home, identity, listen, settings, options.child))
    except PortInUse as error:
        return _fail(str(error), "", code=1)
    return 0


async def _serve(home: Home, identity: NodeIdentity, listen: Listen, settings: Settings, child: int | None) -> None:
    gateway = Gateway(home, identity, listen, settings, is_child=child is not None, number=child or 0)
    await gateway.run()


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 256:
        raise argparse.ArgumentTypeError("must be from 1 to 256")
    return number


def _fail(message: str, remedy: str, code: int = 1) -> int:
    print(f"gateway: {message} {remedy}".rstrip(), file=sys.stderr)
    return code


def _log_json() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            getattr(logging, os.environ.get("STOKEHOLD_LOG_LEVEL", "INFO").upper(), logging.INFO)
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
