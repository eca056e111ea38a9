"""REST of the fleet."""

from __future__ import annotations

import datetime as dt
import shlex

import msgspec
import pytest
from django.core.management import call_command
from pytest_django import DjangoAssertNumQueries, Settings
from rest_framework.test import APIClient

from agent.__main__ import _parser as agent_parser
from fleet.models import JoinToken, Server
from fleet.services import create_join_token, revoke_server
from tests.factories import make_ready_gateway, make_server
from tests.fleet.nodes import make_join_request
from wire import certs, tokens
from wire.messages import JoinReply, JoinRequest

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("ca_dir")]


def post_join(client: APIClient, request: JoinRequest) -> object:
    return client.post("/api/v1/join", msgspec.json.encode(request), content_type="application/json")


# ------------------------------------------------------------------------------------------------ servers


def test_a_server_shows_its_derived_status(api: APIClient) -> None:
    server = make_server(labels={"rack": "b2"})
    shown = api.get(f"/api/v1/servers/{server.pk}/").json()
    assert (shown["status"], shown["labels"]) == ("online", {"rack": "b2"})
    assert shown["age_s"] < 5
    assert shown["load"]["cpu_percent"] == 3.0


def test_a_server_that_was_never_seen_says_so(api: APIClient) -> None:
    server = Server.objects.create(name="bare", public_key_pem="-")
    shown = api.get(f"/api/v1/servers/{server.pk}/").json()
    assert (shown["status"], shown["age_s"], shown["facts"]) == ("never", None, None)


@pytest.mark.parametrize("path", ["servers", "gateways", "join-tokens"])
def test_a_list_takes_the_same_queries_however_long(
    path: str, api: APIClient, now: dt.datetime, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(20):
        make_server()
        make_ready_gateway()
        create_join_token(now=now)
    with django_assert_num_queries(2):  # the count, and a page
        assert api.get(f"/api/v1/{path}/").json()["count"] == 20


def test_name_and_labels_are_changed_and_nothing_else(api: APIClient) -> None:
    server = make_server()
    body = {"name": "renamed", "labels": {"gpu": "h100"}, "availability": "draining"}
    assert api.patch(f"/api/v1/servers/{server.pk}/", body).status_code == 200
    server.refresh_from_db()
    assert (server.name, server.labels, server.availability) == ("renamed", {"gpu": "h100"}, "active")


def test_labels_that_are_no_strings_are_refused(api: APIClient) -> None:
    answer = api.patch(f"/api/v1/servers/{make_server().pk}/", {"labels": {"rack": 2}})
    assert answer.status_code == 400
    assert "labels" in answer.json()["errors"]


@pytest.mark.parametrize(
    ("verb", "availability"), [("cordon", "cordoned"), ("drain", "draining"), ("activate", "active")]
)
def test_a_server_is_taken_out_of_service_and_back(verb: str, availability: str, api: APIClient) -> None:
    server = make_server()
    assert api.post(f"/api/v1/servers/{server.pk}/{verb}/").json()["availability"] == availability
    server.refresh_from_db()
    assert server.availability == availability


def test_a_server_and_a_gateway_are_revoked(api: APIClient) -> None:
    server, gateway = make_server(), make_ready_gateway()
    assert api.post(f"/api/v1/servers/{server.pk}/revoke/").json()["status"] == "revoked"
    assert api.post(f"/api/v1/gateways/{gateway.pk}/revoke/").json()["status"] == "revoked"


@pytest.mark.parametrize("verb", ["cordon", "drain", "activate", "revoke"])
def test_a_viewer_changes_no_server(verb: str, viewer_api: APIClient) -> None:
    server = make_server()
    assert viewer_api.get(f"/api/v1/servers/{server.pk}/").status_code == 200
    assert viewer_api.post(f"/api/v1/servers/{server.pk}/{verb}/").status_code == 403
    assert viewer_api.patch(f"/api/v1/servers/{server.pk}/", {"name": "x"}).status_code == 403


@pytest.mark.parametrize("path", ["servers", "gateways", "join-tokens"])
def test_nobody_reads_without_an_account(path: str, anonymous_api: APIClient) -> None:
    assert anonymous_api.get(f"/api/v1/{path}/").status_code == 401


# ------------------------------------------------------------------------------------------------ join tokens


def test_a_new_token_is_shown_once_with_the_command_for_the_new_machine(api: APIClient) -> None:
    made = api.post("/api/v1/join-tokens/", {"note": "rack b2", "ttl_s": 600}).json()
    token = tokens.parse_join_token(made["token"])
    assert made["command"].startswith("./stokehold agent run --home ~/stokehold-agent --master https://")
    assert made["command"].endswith(f"--token {made['token']}")
    assert agent_parser().parse_args(shlex.split(made["command"])[2:]).token == made["token"]
    assert made["created_by"] == "root"
    shown = api.get("/api/v1/join-tokens/").json()["results"][0]
    assert (shown["token_id"], shown["usable"], "token" in shown) == (token.token_id, True, False)


def test_a_deleted_token_is_gone(api: APIClient) -> None:
    made = api.post("/api/v1/join-tokens/", {"role": "gateway"}).json()
    assert api.delete(f"/api/v1/join-tokens/{made['id']}/").status_code == 204
    assert not JoinToken.objects.exists()


@pytest.mark.parametrize("body", [{"role": "king"}, {"ttl_s": 1}, {"ttl_s": 10**9}, {"note": "x" * 300}])
def test_a_token_of_another_kind_is_not_made(body: dict[str, object], api: APIClient) -> None:
    assert api.post("/api/v1/join-tokens/", body).status_code == 400


def test_a_viewer_makes_no_token(viewer_api: APIClient) -> None:
    assert viewer_api.post("/api/v1/join-tokens/", {}).status_code == 403


def test_the_command_prints_a_token_and_what_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("join_token", "--role", "gateway", "--note", "edge")
    printed = capsys.readouterr().out
    assert tokens.parse_join_token(printed.splitlines()[0])
    assert "./stokehold gateway run --home ~/stokehold-gateway --master https://" in printed
    assert JoinToken.objects.get().note == "edge"


def test_the_command_says_when_no_other_machine_can_join(
    capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    settings.OPTIONS = {"listen": "127.0.0.1"}
    call_command("join_token")
    assert "up --listen 0.0.0.0" in capsys.readouterr().err
    settings.OPTIONS = {"listen": "0.0.0.0"}
    call_command("join_token")
    assert "up --listen" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ joining


def test_a_node_joins_without_an_account(anonymous_api: APIClient, now: dt.datetime) -> None:
    answer = post_join(anonymous_api, make_join_request(create_join_token(now=now)))
    assert answer.status_code == 201
    reply = msgspec.json.decode(answer.content, type=JoinReply)
    assert certs.fingerprint(anonymous_api.get("/api/v1/join/ca").content.decode()) == certs.fingerprint(reply.ca_pem)


def test_a_refused_join_is_a_problem_document(anonymous_api: APIClient, now: dt.datetime) -> None:
    token = create_join_token(now=now)
    post_join(anonymous_api, make_join_request(token))
    answer = post_join(anonymous_api, make_join_request(token, "srv-b"))
    assert (answer.status_code, answer["Content-Type"]) == (403, "application/problem+json")
    assert (answer.json()["code"], bool(answer.json()["remedy"])) == ("join_token_used", True)


def test_a_taken_name_is_a_conflict(anonymous_api: APIClient, now: dt.datetime) -> None:
    for status in (201, 409):
        assert post_join(anonymous_api, make_join_request(create_join_token(now=now))).status_code == status
    revoke_server(Server.objects.get(), now)
    assert post_join(anonymous_api, make_join_request(create_join_token(now=now))).status_code == 201


def test_guessing_at_tokens_is_slowed_down_and_joining_is_not(anonymous_api: APIClient, now: dt.datetime) -> None:
    for number in range(25):
        assert post_join(anonymous_api, make_join_request(create_join_token(now=now), f"s{number}")).status_code == 201
    guess = make_join_request("stk-join-00000000-" + "0" * 64 + "-" + "0" * 64)
    answers = [post_join(anonymous_api, guess) for _ in range(21)]
    assert [answer.status_code for answer in answers] == [403] * 20 + [429]
    assert int(answers[-1]["Retry-After"]) > 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"token": 1}', b"\xff"])
def test_a_join_that_is_not_understood_is_refused(body: bytes, anonymous_api: APIClient) -> None:
    answer = anonymous_api.post("/api/v1/join", body, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "join_request_invalid")
