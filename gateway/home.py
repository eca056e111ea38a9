"""The gateway's own folder: identity, last state, journal. And what tells this host from others."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from wire.feed import FeedSnapshot
from wire.join import NodeIdentity, host_id


class StoredState(msgspec.Struct, frozen=True, kw_only=True):
    """Last state accepted from the master."""

    saved_at: float  # Unix time
    snapshot: FeedSnapshot


@dataclass(frozen=True)
class Home:
    """Paths below one folder, and the small files in it. Everything is readable by its owner only."""

    path: Path

    @property
    def identity_file(self) -> Path:
        return self.path / "identity.json"

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def requests(self) -> Path:
        """Kept requests and answers, by project."""
        return self.path / "requests"

    @property
    def minutes(self) -> Path:
        return self.path / "minutes.json"

    def identity(self) -> NodeIdentity | None:
        """None before the gateway has joined. Raises msgspec.DecodeError when the file is damaged."""
        try:
            return msgspec.json.decode(self.identity_file.read_bytes(), type=NodeIdentity)
        except FileNotFoundError:
            return None

    def save_identity(self, identity: NodeIdentity) -> None:
        write_private(self.identity_file, msgspec.json.format(msgspec.json.encode(identity), indent=1))

    def state(self) -> StoredState | None:
        """None when there is none. Raises msgspec.DecodeError when it is damaged."""
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=StoredState)
        except FileNotFoundError:
            return None

    def save_state(self, stored: StoredState) -> None:
        write_private(self.state_file, msgspec.json.encode(stored))

    def drop_state(self) -> None:
        self.state_file.unlink(missing_ok=True)

    def tls_context(self, identity: NodeIdentity) -> ssl.SSLContext:
        """Client side: pinned CA, own certificate, names verified. The ssl module wants the key in a file."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=identity.ca_pem)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        pair = self.path / "tls.pem"
        write_private(pair, (identity.tls_key_pem + identity.certificate_pem).encode())
        context.load_cert_chain(pair)
        return context


def write_private(path: Path, data: bytes) -> None:
    """Write so that the file is whole or not there; mode 0600."""
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


def own_host_id() -> str:
    """Same for all nodes that share this machine's loopback (`wire.join.host_id`)."""
    return host_id(
        _first_line("/etc/machine-id", "/var/lib/dbus/machine-id") or socket.gethostname(),
        _first_line("/proc/sys/kernel/random/boot_id") or "no-boot-id",
        _network(),
    )


def _network() -> str:
    try:
        return os.readlink("/proc/self/ns/net")
    except OSError:  # not Linux: one loopback a machine
        return ""


def _first_line(*paths: str) -> str:
    for path in paths:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text:
            return text
    return ""
