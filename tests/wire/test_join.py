"""Join tokens pin a CA; node tokens prove a node; certificates carry what relays and TLS stacks look at."""

from __future__ import annotations

import datetime as dt
import ssl
import time

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from wire import certs, join
from wire.errors import BadToken
from wire.tokens import JoinToken, claimed_node, make_node_token, parse_join_token, verify_node_token

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
CA_KEY, CA_PEM = certs.make_ca("test", NOW)
TOKEN = JoinToken("abcd1234", "s" * 43, certs.fingerprint(CA_PEM))


def test_a_join_token_survives_being_pasted() -> None:
    assert parse_join_token(f"  {TOKEN}\n") == TOKEN


@given(st.text(max_size=60))
def test_other_text_is_no_join_token(text: str) -> None:
    with pytest.raises(BadToken, match="copied whole"):
        parse_join_token(text)


def test_the_ca_that_made_the_token_is_accepted() -> None:
    join.check_ca(TOKEN, CA_PEM)


def test_a_foreign_ca_is_refused() -> None:
    _, foreign = certs.make_ca("test", NOW)
    with pytest.raises(BadToken, match="another CA"):
        join.check_ca(TOKEN, foreign)


def test_an_answer_that_is_no_certificate_is_refused() -> None:
    with pytest.raises(BadToken, match="no certificate"):
        join.check_ca(TOKEN, "<html>hello</html>")


def test_a_node_token_proves_its_node_only() -> None:
    pair = certs.make_signing_key()
    token = make_node_token(certs.load_signing_key(pair.private_pem), "srv-a", time.time())
    public = certs.load_verify_key(pair.public_pem)
    assert claimed_node(token) == "srv-a"
    verify_node_token(public, token, "srv-a")
    with pytest.raises(BadToken):
        verify_node_token(public, token, "srv-b")
    with pytest.raises(BadToken):
        verify_node_token(certs.load_verify_key(certs.make_signing_key().public_pem), token, "srv-a")


def test_an_old_node_token_is_refused() -> None:
    pair = certs.make_signing_key()
    token = make_node_token(certs.load_signing_key(pair.private_pem), "srv-a", time.time() - 3600)
    with pytest.raises(BadToken, match="expired"):
        verify_node_token(certs.load_verify_key(pair.public_pem), token, "srv-a")


def test_a_nodes_certificate_is_checked_by_openssl_against_the_ca() -> None:
    pem = certs.issue(
        CA_KEY,
        CA_PEM,
        certs.make_tls_key().public_pem,
        common_name="srv-a",
        role="agent",
        names=("10.0.0.1", "host.example", certs.relay_wildcard("srv-a")),
        now=NOW,
    )
    certificate = x509.load_pem_x509_certificate(pem.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["host.example", "*.srv-a.relay.stokehold.internal"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    context = ssl.create_default_context(cadata=CA_PEM)
    assert len(context.get_ca_certs()) == 1
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(CA_PEM.encode()))
    assert certs.expires_at(pem) > NOW + dt.timedelta(days=800)


@given(attempt=st.integers(0, 10_000), jitter=st.floats(0, 1, exclude_max=True))
def test_reconnects_come_soon_and_never_more_than_five_seconds_apart(attempt: int, jitter: float) -> None:
    delay_s = join.reconnect_delay_s(attempt, jitter)
    assert 0 < delay_s <= 5
    assert attempt > 0 or delay_s < 1


def test_a_host_has_another_id_after_it_restarts() -> None:
    assert join.host_id("m\n", "b\n", "n") == join.host_id("m", "b", "n") != join.host_id("m", "c", "n")


def test_another_network_namespace_is_another_host() -> None:
    assert join.host_id("m", "b", "net:[1]") != join.host_id("m", "b", "net:[2]")
