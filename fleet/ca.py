"""The built-in CA on disk: made at first start, the master's certificate renewed when it no longer fits.

Nodes pin the CA and always verify the master by `MASTER_NAME`, so no other certificate of this CA can pose as it.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings

from fleet.errors import BadJoinRequest
from fleet.files import write_private
from wire import certs

log = structlog.get_logger(__name__)

MASTER_NAME = "master.stokehold.internal"
INTERNAL_DOMAIN = "stokehold.internal"
RENEW_BEFORE = dt.timedelta(days=30)
MASTER_DAYS = 397  # what TLS clients accept at most; renewed at any start within its last month


@dataclass(frozen=True)
class CaFiles:
    """Where the CA's files lie. Keys have mode 0600."""

    folder: Path

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca.key"

    @property
    def ca_certificate(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def master_key(self) -> Path:
        return self.folder / "master.key"

    @property
    def master_certificate(self) -> Path:
        return self.folder / "master.pem"

    @property
    def signing_key(self) -> Path:
        return self.folder / "signing.key"

    @property
    def signing_public(self) -> Path:
        return self.folder / "signing.pub"


def ensure_ca(now: dt.datetime) -> CaFiles:
    """The CA of this installation, made when it is missing; the master's certificate re-issued when due.

    Safe when several processes start at once, and after a start that was cut in the middle: a certificate is written
    after its key, and only a complete pair counts.
    """
    files = CaFiles(Path(settings.CA_DIR))
    files.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_one_process(files.folder):
        if not files.ca_certificate.exists():
            key_pem, certificate_pem = certs.make_ca("Stokehold CA", now)
            write_private(files.ca_key, key_pem)
            write_private(files.ca_certificate, certificate_pem)
            log.info("ca.made", fingerprint=certs.fingerprint(certificate_pem))
        if not files.signing_public.exists():
            pair = certs.make_signing_key()
            write_private(files.signing_key, pair.private_pem)
            write_private(files.signing_public, pair.public_pem)
        names = master_names()
        if _master_is_due(files, names, now):
            _issue_master(files, names, now)
    return files


def ca_pem() -> str:
    """The CA's certificate."""
    return _read(ensure_ca_exists().ca_certificate)


def ca_fingerprint() -> str:
    """What join tokens pin."""
    return certs.fingerprint(ca_pem())


def signing_key() -> Ed25519PrivateKey:
    """The key that signs desired states and orders."""
    return _load_signing_key(_read(ensure_ca_exists().signing_key))


def signing_public_pem() -> str:
    return _read(ensure_ca_exists().signing_public)


def issue_node_certificate(
    tls_public_key_pem: str, *, node_id: str, role: str, addresses: tuple[str, ...], now: dt.datetime
) -> str:
    """Certificate PEM of a node: its addresses, and for an agent the wildcard of its relay.

    Raises:
        BadJoinRequest: the key is not an EC key.
    """
    files = ensure_ca_exists()
    own = certs.relay_wildcard(node_id) if role == "agent" else f"{node_id}.{role}.{INTERNAL_DOMAIN}"
    try:
        return certs.issue(
            _read(files.ca_key),
            _read(files.ca_certificate),
            tls_public_key_pem,
            common_name=node_id,
            role=role,
            names=(own, *dict.fromkeys(addresses)),
            now=now,
        )
    except ValueError as error:
        raise BadJoinRequest(f"no certificate can be made for this node: {error}") from error


def ensure_ca_exists() -> CaFiles:
    """The CA's files; made when this process is the first to need them."""
    files = CaFiles(Path(settings.CA_DIR))
    if files.master_certificate.exists():
        return files
    return ensure_ca(dt.datetime.now(dt.UTC))


def master_names() -> tuple[str, ...]:
    """Names and addresses of this host that the master's certificate should hold, sorted."""
    hostname = socket.gethostname()
    names = {MASTER_NAME, "localhost", "127.0.0.1", "::1", hostname.lower()}
    names |= _own_addresses()
    public = urlsplit(settings.LINK_BASE_URL).hostname
    if public:
        names.add(public)
    return tuple(sorted(name for name in names if _certifiable(name)))


def _own_addresses() -> set[str]:
    found = (entry.address for entries in psutil.net_if_addrs().values() for entry in entries)
    return {address for address in found if _is_address(address) and "%" not in address}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _certifiable(name: str) -> bool:
    return _is_address(name) or (name.isascii() and 0 < len(name) < 254 and " " not in name and "_" not in name)


def _master_is_due(files: CaFiles, names: tuple[str, ...], now: dt.datetime) -> bool:
    if not files.master_certificate.exists() or not files.master_key.exists():
        return True
    try:
        certificate = x509.load_pem_x509_certificate(files.master_certificate.read_bytes())
        key = serialization.load_pem_private_key(files.master_key.read_bytes(), password=None)
        ca = x509.load_pem_x509_certificate(files.ca_certificate.read_bytes())
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, x509.InvalidVersion, InvalidSignature) as error:
        log.warning("ca.master_certificate_unusable", error=repr(error))
        return True
    if key.public_key() != certificate.public_key():
        return True
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    current = {str(entry.value) for entry in held}
    return now > certificate.not_valid_after_utc - RENEW_BEFORE or not set(names) <= current


def _issue_master(files: CaFiles, names: tuple[str, ...], now: dt.datetime) -> None:
    pair = certs.make_tls_key()
    certificate = certs.issue(
        files.ca_key.read_text(),
        files.ca_certificate.read_text(),
        pair.public_pem,
        common_name=MASTER_NAME,
        role="master",
        names=names,
        now=now,
        days=MASTER_DAYS,
    )
    write_private(files.master_key, pair.private_pem)
    write_private(files.master_certificate, certificate)
    log.info("ca.master_certificate_issued", names=names)


@contextmanager
def _only_one_process(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> str:
    stat = path.stat()
    return _read_once(path, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=16)
def _read_once(path: Path, _changed_ns: int, _inode: int) -> str:
    return path.read_text()


@lru_cache(maxsize=2)
def _load_signing_key(pem: str) -> Ed25519PrivateKey:
    return certs.load_signing_key(pem)
