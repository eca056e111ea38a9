"""What must hold before anything is started. Each failure is one sentence with what to do."""

from __future__ import annotations

import errno
import os
import shutil
import socket

import psutil

from config.home import Home
from config.launcher.errors import LauncherError
from config.launcher.installation import Options

NEEDED_FREE_BYTES = 500_000_000


def check_home(home: Home) -> None:
    """The home folder can be made and written to."""
    try:
        home.path.mkdir(parents=True, exist_ok=True, mode=0o700)  # the database lies in it
        (home.path / "static").mkdir(exist_ok=True)  # empty: assets are served from the source, but it is looked for
        probe = home.path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LauncherError(
            f"the home folder {home.path} cannot be written to ({error.strerror}): "
            "fix its permissions or choose another with --home."
        ) from error
    if any(char in str(home.path) for char in "\n\r\0;#"):
        raise LauncherError(
            f"the home folder {str(home.path)!r} has a character in its name that the supervisor's "
            "configuration cannot hold (';', '#' or a line break): choose another with --home."
        )


def check_disk(home: Home) -> None:
    """There is room for a database, logs and the demo model."""
    free = shutil.disk_usage(home.path).free
    if free < NEEDED_FREE_BYTES:
        raise LauncherError(
            f"only {free // 1_000_000} MB are free where {home.path} lies and 500 MB are needed: "
            "free some, or choose another place with --home."
        )


def check_ports(options: Options) -> None:
    """Every port is free, and ours to take."""
    ports = {"--port": options.port, "--gateway-port": options.gateway_port, "--link-port": options.link_port}
    if len(set(ports.values())) < len(ports):
        raise LauncherError("--port, --gateway-port and --link-port must differ from each other.")
    for option, port in ports.items():
        _check_port(options.listen, port, option)


def _check_port(listen: str, port: int, option: str) -> None:
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
        except OSError as error:
            raise LauncherError(_port_problem(error, listen, port, option)) from error


def _port_problem(error: OSError, listen: str, port: int, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use{_holder(port)}: stop what uses it, or choose another with {option}."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} may not be opened by this user: choose one above 1023 with {option}."
    return f"cannot listen on {listen} ({error.strerror}): choose an address of this machine with --listen."


def _holder(port: int) -> str:
    """' by nginx (pid 12)' when that can be seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})" if connection.pid else ""
    except (psutil.Error, OSError):
        return ""
    return ""


def forget_foreign_environment() -> None:
    """Settings of a surrounding Django project must not leak into ours."""
    if not os.environ.get("DJANGO_SETTINGS_MODULE", "config.").startswith("config."):
        del os.environ["DJANGO_SETTINGS_MODULE"]
