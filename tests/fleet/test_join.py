"""Joining: who may, once, and what is refused."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path

import pytest
from django.db import connection

from fleet import ca
from fleet.errors import BadJoinRequest, BadJoinToken, NameTaken
from fleet.models import Gateway, JoinToken, Server
from fleet.services import create_join_token, join_node, revoke_server
from tests.fleet.nodes import make_join_request
from wire import certs, tokens

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("ca_dir")]
HOUR = dt.timedelta(hours=1)


def test_a_node_with_a_token_becomes_a_server(now: dt.datetime) -> None:
    reply = join_node(make_join_request(create_join_token(now=now), "srv-a"), now)
    server = Server.objects.get(pk=reply.node_id)
    assert (server.name, reply.ca_pem) == ("srv-a", ca.ca_pem())
    assert certs.load_verify_key(reply.signing_public_key_pem) == ca.signing_key().public_key()
    assert server.certificate_expires_at == certs.expires_at(reply.certificate_pem)
    assert server.state.last_seen_at is None


def test_a_node_with_a_gateway_token_becomes_a_gateway(now: dt.datetime) -> None:
    reply = join_node(make_join_request(create_join_token(role="gateway", now=now), "gw-a", "gateway"), now)
    assert Gateway.objects.get(pk=reply.node_id).name == "gw-a"


def test_only_a_hash_of_the_token_is_kept(now: dt.datetime) -> None:
    token = tokens.parse_join_token(create_join_token(now=now))
    row = JoinToken.objects.get()
    assert row.token_id == token.token_id
    assert token.secret not in str(list(JoinToken.objects.values()))


def _refusal(token: str, now: dt.datetime, role: str = "agent") -> str:
    with pytest.raises(BadJoinToken) as caught:
        join_node(make_join_request(token, "srv-b", role), now)
    assert caught.value.status == 403
    assert "join_token" in caught.value.remedy
    assert not Server.objects.filter(name="srv-b").exists()
    return caught.value.code


def test_a_token_is_good_for_one_join(now: dt.datetime) -> None:
    token = create_join_token(now=now)
    join_node(make_join_request(token, "srv-a"), now)
    assert _refusal(token, now) == "join_token_used"


def test_an_expired_token_is_refused(now: dt.datetime) -> None:
    assert _refusal(create_join_token(ttl=HOUR, now=now), now + HOUR) == "join_token_expired"


def test_a_token_for_a_gateway_takes_no_server(now: dt.datetime) -> None:
    assert _refusal(create_join_token(role="gateway", now=now), now) == "join_token_role"


def test_a_token_of_another_master_is_refused(now: dt.datetime) -> None:
    token = tokens.parse_join_token(create_join_token(now=now))
    foreign = tokens.JoinToken(token.token_id, token.secret, "0" * 64)
    assert _refusal(str(foreign), now) == "join_token_foreign"


def test_a_token_with_a_wrong_secret_is_unknown(now: dt.datetime) -> None:
    token = tokens.parse_join_token(create_join_token(now=now))
    assert _refusal(str(tokens.JoinToken(token.token_id, "0" * 64, token.ca_fingerprint)), now) == "join_token_unknown"


def test_a_deleted_token_is_unknown(now: dt.datetime) -> None:
    token = create_join_token(now=now)
    JoinToken.objects.all().delete()
    assert _refusal(token, now) == "join_token_unknown"


def test_text_that_is_no_token_is_refused(now: dt.datetime) -> None:
    assert _refusal("hello", now) == "join_token_unknown"


def test_a_name_in_use_is_refused_and_the_token_stays_good(now: dt.datetime) -> None:
    join_node(make_join_request(create_join_token(now=now), "srv-a"), now)
    token = create_join_token(now=now)
    with pytest.raises(NameTaken, match="srv-a") as caught:
        join_node(make_join_request(token, "srv-a"), now)
    assert "--name" in caught.value.remedy
    assert join_node(make_join_request(token, "srv-c"), now).name == "srv-c"


def test_a_revoked_server_can_be_joined_anew_under_its_name(now: dt.datetime) -> None:
    first = join_node(make_join_request(create_join_token(now=now), "srv-a"), now)
    server = Server.objects.get()
    revoke_server(server, now)
    again = join_node(make_join_request(create_join_token(now=now), "srv-a"), now)
    server.refresh_from_db()
    assert again.node_id == first.node_id
    assert server.revoked_at is None


@pytest.mark.parametrize(
    "address",
    ["master.stokehold.internal", "X.STOKEHOLD.INTERNAL.", "stokehold.internal", "*.example.org", "a b", "", "a" * 64],
)
def test_an_address_that_is_not_the_nodes_own_is_not_certified(address: str, now: dt.datetime) -> None:
    token = create_join_token(now=now)
    with pytest.raises(BadJoinRequest):
        join_node(make_join_request(token, addresses=(address,)), now)
    assert JoinToken.objects.get().used_at is None


def test_too_many_addresses_are_not_certified(now: dt.datetime) -> None:
    addresses = tuple(f"10.0.0.{number}" for number in range(33))
    with pytest.raises(BadJoinRequest, match="at most 32"):
        join_node(make_join_request(create_join_token(now=now), addresses=addresses), now)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a" * 64, "a/b", "ä"])
def test_a_name_that_is_none_is_refused(name: str, now: dt.datetime) -> None:
    with pytest.raises(BadJoinRequest, match="no name"):
        join_node(make_join_request(create_join_token(now=now), name), now)


def test_keys_that_are_none_are_refused_and_the_token_stays_good(now: dt.datetime) -> None:
    token = create_join_token(now=now)
    with pytest.raises(BadJoinRequest, match="public key"):
        join_node(make_join_request(token, public_key_pem="nonsense"), now)
    with pytest.raises(BadJoinRequest, match="EC key"):
        join_node(make_join_request(token, tls_public_key_pem=certs.make_signing_key().public_pem), now)
    assert JoinToken.objects.get().used_at is None


@pytest.mark.parametrize("ttl", [dt.timedelta(0), dt.timedelta(days=8)])
def test_a_token_lives_between_a_moment_and_a_week(ttl: dt.timedelta, now: dt.datetime) -> None:
    with pytest.raises(BadJoinRequest):
        create_join_token(ttl=ttl, now=now)


@pytest.mark.django_db(transaction=True)
def test_of_many_joins_at_once_with_one_token_one_succeeds(ca_dir: Path, now: dt.datetime) -> None:
    token = create_join_token(now=now)
    requests = [make_join_request(token, f"srv-{number}") for number in range(6)]
    joined, refused = [], []
    start = threading.Barrier(len(requests))

    def attempt(number: int) -> None:
        start.wait()
        try:
            joined.append(join_node(requests[number], now).name)
        except BadJoinToken as error:
            refused.append(error.code)
        finally:
            connection.close()

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(joined) == 1
    assert refused == ["join_token_used"] * 5
    assert list(Server.objects.values_list("name", flat=True)) == joined
