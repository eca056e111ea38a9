"""One installation as the launcher sees it: its home, its options, and the environment its processes get."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from config.home import SOURCE_DIR, Home

_EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Options:
    """What `up` was started with. Kept in HOME/options.json, so that later commands look at the same installation."""

    port: int = 8000
    gateway_port: int = 8080
    link_port: int = 8443
    listen: str = "127.0.0.1"
    database_url: str = ""
    runtime: str = "auto"
    image: str = ""
    gateway_processes: int = 1

    @classmethod
    def resolve(cls, saved: dict[str, Any], given: dict[str, Any]) -> Options:
        """Given ones first, then those saved by the last start, then the defaults."""
        known = {key: value for key, value in saved.items() if key in cls.__dataclass_fields__}
        return replace(cls(**known), **{key: value for key, value in given.items() if value is not None})


@dataclass(frozen=True)
class Installation:
    """Home and options together, with the addresses that follow from them."""

    home: Home
    options: Options

    @property
    def host(self) -> str:
        """Where this machine reaches what listens on `listen`."""
        host = "127.0.0.1" if self.options.listen in _EVERYWHERE else self.options.listen
        return f"[{host}]" if ":" in host else host

    @property
    def master_url(self) -> str:
        return f"http://{self.host}:{self.options.port}"

    @property
    def link_url(self) -> str:
        return f"https://{self.host}:{self.options.link_port}"

    @property
    def gateway_url(self) -> str:
        return f"http://{self.host}:{self.options.gateway_port}"

    def credentials(self) -> dict[str, Any]:
        """Content of HOME/credentials.json; empty before the first start."""
        import json

        try:
            loaded: dict[str, Any] = json.loads(self.home.credentials.read_text())
        except FileNotFoundError:
            return {}
        return loaded

    def environment(self) -> dict[str, str]:
        """Environment of every process of this installation."""
        env = {key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "VIRTUAL_ENV")}
        env["STOKEHOLD_HOME"] = str(self.home.path)
        env["PYTHONPATH"] = os.pathsep.join([str(SOURCE_DIR), *filter(None, [_foreign_python_path()])])
        env["PYTHONUNBUFFERED"] = "1"
        env.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.embedded")
        if self.options.database_url:
            env["DATABASE_URL"] = self.options.database_url
        env.setdefault("STOKEHOLD_MASTER_URL", self.master_url)
        env.setdefault("STOKEHOLD_GATEWAY_URL", f"{self.gateway_url}/v1")
        env.setdefault("STOKEHOLD_LINK_URL", f"https://{self._outside_host()}:{self.options.link_port}")
        return env

    def save(self) -> None:
        self.home.save_options(asdict(self.options))

    def _outside_host(self) -> str:
        """Where other machines reach the link port, as far as can be told."""
        if self.options.listen not in _EVERYWHERE:
            return self.host
        return socket.getfqdn() if "." in socket.getfqdn() else _own_address()


def _own_address() -> str:
    """Address of the interface with the default route; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737)
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address


def _foreign_python_path() -> str:
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(part for part in parts if part and part != str(SOURCE_DIR))


def open_installation(home: Path | None, given: dict[str, Any] | None = None) -> Installation:
    """The installation in `home`, or in the default one."""
    chosen = Home(home.absolute()) if home else Home.current()
    return Installation(chosen, Options.resolve(chosen.options(), given or {}))


def python() -> str:
    """Interpreter of this environment (not resolved: a symlink in `.venv/bin` is what makes it the environment's)."""
    return sys.executable
