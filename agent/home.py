"""The agent's home folder: its identity, options and lock, and where everything else lies below it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.errors import BadHome, HomeBusy
from wire.join import NodeIdentity


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that it is whole or not there, readable by the owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class ProgramConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a program for the process runtime is, and what its environment needs."""

    path: str
    env: dict[str, str] = {}


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`HOME/config.json`; every part has a default."""

    programs: dict[str, ProgramConfig] = {}
    docker: bool | None = None  # False: never; None and True: where a daemon answers
    relay_port: int = 0  # 0: 8444 where it is free, else any; then kept
    relay_host: str = "0.0.0.0"
    disk_quota_bytes: int | None = None  # of blobs; None: keep all while there is room
    shared_roots: tuple[str, ...] | None = None  # where shared storage may be used in place; None: anywhere


@dataclass(frozen=True)
class AgentHome:
    """Paths below one agent's home folder."""

    path: Path

    @property
    def home_id(self) -> str:
        """Tells the engines of two agents on one machine apart."""
        return hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:12]

    @property
    def identity_file(self) -> Path:
        return self.path / "identity.json"

    @property
    def desired_file(self) -> Path:
        return self.path / "desired.json"

    @property
    def addresses_file(self) -> Path:
        return self.path / "addresses.json"

    @property
    def relay_port_file(self) -> Path:
        return self.path / "relay_port"

    @property
    def relay_pem(self) -> Path:
        return self.path / "relay.pem"

    @property
    def instances(self) -> Path:
        return self.path / "instances"

    def instance(self, instance_id: str) -> Path:
        return self.instances / instance_id

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)  # engines' output lies in it
        self.instances.mkdir(exist_ok=True)

    def identity(self) -> NodeIdentity | None:
        """None when this home has not joined. Raises BadHome when the file is damaged."""
        try:
            return msgspec.json.decode(self.identity_file.read_bytes(), type=NodeIdentity)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, OSError) as error:
            raise BadHome(f"{self.identity_file} cannot be read: {error}") from error

    def save_identity(self, identity: NodeIdentity) -> None:
        write_whole(self.identity_file, msgspec.json.encode(identity))

    def config(self) -> AgentConfig:
        """Raises BadHome when the file is there but wrong."""
        path = self.path / "config.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=AgentConfig)
        except FileNotFoundError:
            return AgentConfig()
        except (msgspec.DecodeError, OSError) as error:
            raise BadHome(f"{path} cannot be used: {error}", remedy="Correct that file, or remove it.") from error

    def addresses(self) -> tuple[str, ...]:
        """Addresses given when joining; empty: find them."""
        try:
            return msgspec.json.decode(self.addresses_file.read_bytes(), type=tuple[str, ...])
        except (FileNotFoundError, msgspec.DecodeError):
            return ()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this home alone; the kernel lets go of it when the process ends. Raises HomeBusy."""
        with (self.path / "agent.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise HomeBusy(f"another agent (pid {file.read().strip() or '?'}) uses {self.path}") from error
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield
