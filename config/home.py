"""The home folder of one installation: where things lie, its secrets, and the options it was started with.

No Django here: the launcher reads it before settings exist.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.files import write_private

SOURCE_DIR = Path(__file__).resolve().parent.parent
_SECRETS: dict[str, Callable[[], str]] = {
    "secret_key": lambda: secrets.token_urlsafe(50),
    "key_pepper": lambda: secrets.token_hex(32),
    "jwt_key": lambda: secrets.token_urlsafe(50),
    "field_key": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),  # Fernet's form
}
_MAX_SOCKET_PATH = 90  # sun_path holds 108 bytes; the longest name below `run` is 12


@dataclass(frozen=True)
class Home:
    """Paths below one home folder."""

    path: Path

    @classmethod
    def current(cls) -> Home:
        """`STOKEHOLD_HOME`, or `.stokehold/` beside the source."""
        return cls(Path(os.environ.get("STOKEHOLD_HOME") or SOURCE_DIR / ".stokehold").absolute())

    @property
    def database(self) -> Path:
        return self.path / "db.sqlite3"

    @property
    def ca(self) -> Path:
        return self.path / "ca"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def agent(self) -> Path:
        return self.path / "agent"

    @property
    def gateway(self) -> Path:
        return self.path / "gateway"

    @property
    def credentials(self) -> Path:
        return self.path / "credentials.json"

    @property
    def run(self) -> Path:
        """Folder for sockets; elsewhere when this path is too long for a unix socket."""
        own = self.path / "run"
        if len(str(own).encode()) <= _MAX_SOCKET_PATH:
            return own
        name = hashlib.sha256(str(self.path).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"stokehold-{os.getuid()}-{name}"

    @property
    def valkey_socket(self) -> Path:
        return self.run / "valkey.sock"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "up.sock"

    @property
    def supervisor_pidfile(self) -> Path:
        return self.run / "supervisord.pid"

    def secrets(self) -> dict[str, str]:
        """This installation's secrets; made at first use."""
        path = self.path / "secrets.json"
        loaded: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        missing = {name: make() for name, make in _SECRETS.items() if name not in loaded}
        if missing:  # at first use, and what a later release has more
            loaded = {**loaded, **missing}
            write_private(path, json.dumps(loaded, indent=1))
        return loaded

    def options(self) -> dict[str, Any]:
        """What `up` was last started with (ports, database): later commands look at the same installation."""
        try:
            loaded: dict[str, Any] = json.loads((self.path / "options.json").read_text())
        except FileNotFoundError:
            return {}
        return loaded

    def save_options(self, options: dict[str, Any]) -> None:
        write_private(self.path / "options.json", json.dumps(options, indent=1))
