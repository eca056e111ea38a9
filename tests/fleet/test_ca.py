"""The CA on disk."""

from __future__ import annotations

import datetime as dt
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from pytest_django import Settings

from config.home import SOURCE_DIR
from fleet import ca
from fleet.errors import BadJoinRequest
from wire import certs


def _sans(pem: str) -> set[str]:
    certificate = x509.load_pem_x509_certificate(pem.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def test_the_first_start_makes_a_ca_and_keys_that_only_their_owner_can_read(ca_dir: Path, now: dt.datetime) -> None:
    files = ca.ensure_ca(now)
    for key in (files.ca_key, files.master_key, files.signing_key):
        assert key.stat().st_mode & 0o777 == 0o600
    assert {"master.stokehold.internal", "localhost", "127.0.0.1", "::1"} <= _sans(files.master_certificate.read_text())
    context = ssl.create_default_context(cafile=str(files.ca_certificate))
    context.load_cert_chain(files.master_certificate, files.master_key)


def test_a_second_start_changes_nothing(ca_dir: Path, now: dt.datetime) -> None:
    ca.ensure_ca(now)
    before = {path.name: path.read_bytes() for path in ca_dir.iterdir()}
    ca.ensure_ca(now + dt.timedelta(days=1))
    assert {path.name: path.read_bytes() for path in ca_dir.iterdir()} == before


def test_the_master_certificate_is_issued_anew_within_its_last_month(ca_dir: Path, now: dt.datetime) -> None:
    files = ca.ensure_ca(now)
    old, root = files.master_certificate.read_text(), files.ca_certificate.read_text()
    ca.ensure_ca(now + dt.timedelta(days=ca.MASTER_DAYS - 29))
    assert files.master_certificate.read_text() != old
    assert files.ca_certificate.read_text() == root


def test_the_master_certificate_is_issued_anew_when_the_host_gets_another_name(
    ca_dir: Path, now: dt.datetime, settings: Settings
) -> None:
    files = ca.ensure_ca(now)
    settings.LINK_BASE_URL = "https://stokehold.example.org:8443"
    ca.ensure_ca(now)
    assert "stokehold.example.org" in _sans(files.master_certificate.read_text())


def test_a_start_cut_in_the_middle_is_completed_by_the_next(ca_dir: Path, now: dt.datetime) -> None:
    files = ca.ensure_ca(now)
    files.master_key.unlink()
    files.signing_public.unlink()
    ca.ensure_ca(now)
    public = certs.load_verify_key(files.signing_public.read_text())
    assert certs.load_signing_key(files.signing_key.read_text()).public_key() == public
    assert files.master_key.exists()


def test_a_damaged_master_certificate_is_issued_anew(ca_dir: Path, now: dt.datetime) -> None:
    files = ca.ensure_ca(now)
    files.master_certificate.write_text("-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n")
    ca.ensure_ca(now)
    assert certs.expires_at(files.master_certificate.read_text()) > now


def test_processes_that_start_at_once_agree_on_one_ca(tmp_path: Path) -> None:
    program = (
        "import django, datetime as dt; django.setup();"
        "from fleet import ca; ca.ensure_ca(dt.datetime.now(dt.UTC));"
        "print(ca.ca_fingerprint(), ca.signing_public_pem().split()[3])"
    )
    environment = os.environ | {"STOKEHOLD_HOME": str(tmp_path), "DJANGO_SETTINGS_MODULE": "config.settings.embedded"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment, cwd=SOURCE_DIR, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    answers = {process.communicate(timeout=60)[0].strip().splitlines()[-1] for process in started}
    assert len(answers) == 1


def test_an_agent_certificate_names_its_role_its_addresses_and_its_relay(ca_dir: Path, now: dt.datetime) -> None:
    key = certs.make_tls_key()
    pem = ca.issue_node_certificate(
        key.public_pem, node_id="srv-1", role="agent", addresses=("10.0.0.9", "a.example.org"), now=now
    )
    assert _sans(pem) == {"10.0.0.9", "a.example.org", "*.srv-1.relay.stokehold.internal"}
    subject = x509.load_pem_x509_certificate(pem.encode()).subject
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value == "agent"


def test_a_gateway_certificate_covers_no_relay(ca_dir: Path, now: dt.datetime) -> None:
    pem = ca.issue_node_certificate(
        certs.make_tls_key().public_pem, node_id="gw-1", role="gateway", addresses=(), now=now
    )
    assert _sans(pem) == {"gw-1.gateway.stokehold.internal"}


def test_a_signing_key_is_not_certified_for_tls(ca_dir: Path, now: dt.datetime) -> None:
    with pytest.raises(BadJoinRequest, match="EC key"):
        ca.issue_node_certificate(
            certs.make_signing_key().public_pem, node_id="srv-1", role="agent", addresses=(), now=now
        )
