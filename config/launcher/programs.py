"""What runs: the processes of an embedded installation, and the supervisor's configuration made of them. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

_ALWAYS = 1_000_000_000  # start retries


@dataclass(frozen=True)
class Program:
    """One supervised process. Lower `priority` starts first and stops last."""

    name: str
    argv: tuple[str, ...]
    priority: int
    stop_wait_s: int = 10


@dataclass(frozen=True)
class Layout:
    """All that the configuration depends on."""

    home: Path
    run: Path
    logs: Path
    source: Path
    python: str
    valkey_server: str  # empty: an outside Redis is used
    listen: str
    port: int
    gateway_port: int
    link_port: int
    open_files: int
    gateway_processes: int = 1
    redis_url: str = ""  # of the outside Redis


def programs(layout: Layout) -> tuple[Program, ...]:
    """Every process, in the order of starting."""
    django = (layout.python, "manage.py")
    celery = (layout.python, "-m", "celery", "-A", "config")
    nodes = (
        Program(
            "gateway",
            (
                *(layout.python, "-m", "gateway", "run", "--home", str(layout.home / "gateway")),
                *("--host", layout.listen, "--port", str(layout.gateway_port)),
                *_family(layout),
            ),
            priority=20,
        ),
        Program("agent", (layout.python, "-m", "agent", "run", "--home", str(layout.home / "agent")), priority=20),
    )
    control = (
        Program("master", _daphne(layout), priority=10),
        Program("controller", (*django, "controller"), priority=15),
        # One process with threads: kill -9 leaves no pool children behind that go on with a task.
        Program(
            "worker",
            (
                *(*celery, "worker", "--pool", "threads", "--concurrency", "4", "--loglevel", "INFO"),
                *("--without-gossip", "--without-mingle", "--hostname", "worker@%h"),
            ),
            priority=15,
        ),
        Program("beat", (*celery, "beat", "--pidfile=", "--loglevel", "INFO"), priority=15),
    )
    valkey = (Program("valkey", _valkey(layout), priority=1),) if layout.valkey_server else ()
    return (*valkey, *control, *nodes)


def _family(layout: Layout) -> tuple[str, ...]:
    """Several processes of a gateway count quotas together in the Redis that is there anyway."""
    if layout.gateway_processes == 1:
        return ()
    counters = f"unix://{quote(str(layout.run / 'valkey.sock'))}" if layout.valkey_server else layout.redis_url
    return ("--processes", str(layout.gateway_processes), "--redis", counters)


def _daphne(layout: Layout) -> tuple[str, ...]:
    interface = _endpoint_value(layout.listen)
    tls_key = _endpoint_value(str(layout.home / "ca" / "master.key"))
    tls_certificate = _endpoint_value(str(layout.home / "ca" / "master.pem"))
    return (
        *(layout.python, "-m", "daphne", "-v", "0", "--no-server-name", "--websocket_timeout", "-1"),
        *("-e", f"tcp:{layout.port}:interface={interface}"),
        *("-e", f"ssl:{layout.link_port}:privateKey={tls_key}:certKey={tls_certificate}:interface={interface}"),
        "config.asgi:application",
    )


def _endpoint_value(text: str) -> str:
    r"""Value in a Twisted endpoint description: `\` and `:` are escaped."""
    return text.replace("\\", "\\\\").replace(":", "\\:")


def _valkey(layout: Layout) -> tuple[str, ...]:
    return (
        *(layout.valkey_server, "--port", "0", "--unixsocket", str(layout.run / "valkey.sock")),
        *("--unixsocketperm", "700", "--dir", str(layout.home / "valkey"), "--appendonly", "yes", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--set-proc-title", "no"),
    )


def supervisor_config(layout: Layout) -> str:
    """Text for supervisord. Nothing starts by itself: `up` starts each program when its turn has come."""
    sections = [
        _section("unix_http_server", file=str(layout.run / "up.sock"), chmod="0700"),
        _section(
            "supervisord",
            logfile=str(layout.logs / "supervisord.log"),
            logfile_maxbytes="5MB",
            logfile_backups="2",
            pidfile=str(layout.run / "supervisord.pid"),
            childlogdir=str(layout.logs),
            identifier="stokehold",
            minfds=str(layout.open_files),
            silent="true",
            nodaemon="true",
        ),
        _section(
            "rpcinterface:supervisor",
            **{"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"},
        ),
    ]
    sections += [_program_section(layout, program) for program in programs(layout)]
    return "\n".join(sections)


def _program_section(layout: Layout, program: Program) -> str:
    return _section(
        f"program:{program.name}",
        command=shlex.join(program.argv),
        directory=str(layout.source),
        # Found again by this mark when the supervisor itself was killed.
        environment=f'STOKEHOLD_PROCESS="{program.name}"',
        priority=str(program.priority),
        autostart="false",
        autorestart="true",
        startsecs="1",
        startretries=str(_ALWAYS),
        stopwaitsecs=str(program.stop_wait_s),
        stopasgroup="false",
        killasgroup="false",
        redirect_stderr="true",
        stdout_logfile=str(layout.logs / f"{program.name}.log").replace("%", "%%"),  # the one value expanded twice
        stdout_logfile_maxbytes="10MB",
        stdout_logfile_backups="3",
    )


def _section(section: str, **values: str) -> str:
    lines = [f"{key}={value.replace('%', '%%')}" for key, value in values.items()]
    return "\n".join([f"[{section}]", *lines, ""])
