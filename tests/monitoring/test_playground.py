"""The playground: who may use it and on whose account, and the way of a request through the real gateway."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from apikeys import playground, services
from apikeys.errors import ProjectOff
from apikeys.models import ApiKey, UsageHour
from tests.factories import make_deployment, make_key, make_project
from tests.fakes.engine import FakeEngine
from tests.master import Master, test_database_url
from tests.served import Served, serving
from tests.waiting import wait_for

pytestmark = pytest.mark.django_db
NOW = dt.datetime(2026, 3, 5, 12, 30, tzinfo=dt.UTC)
BODY = {"model": "chat", "messages": [{"role": "user", "content": "Say hi"}]}


def make_person(name: str = "maria", *, group: str = "", staff: bool = True) -> User:
    user = User.objects.create_user(name, password="correct horse battery", is_staff=staff)
    if group:
        user.groups.add(Group.objects.get(name=group))
    return user


def ask(client: Client, project: Any, body: Any = BODY) -> Any:
    asked = {"project": str(project), "body": body}
    return client.post(reverse("admin:playground_ask"), json.dumps(asked), content_type="application/json")


# ------------------------------------------------------------------------------------------------ its key


def test_one_key_serves_a_person_and_project_and_opens_what_the_gateway_knows() -> None:
    user, project = make_person(), make_project()
    text = playground.playground_key(user, project, NOW)
    assert playground.playground_key(user, project, NOW + dt.timedelta(minutes=40)) == text
    key = ApiKey.objects.get()
    assert key.name == "playground of maria"
    assert key.secret_hash == services.hash_key(text)
    assert re.fullmatch(rf"{key.prefix}-[0-9A-Za-z]{{43}}", text)
    assert key.expires_at == NOW + dt.timedelta(hours=1)


def test_people_and_projects_do_not_share_a_key() -> None:
    maria, paul, project, other = make_person(), make_person("paul"), make_project(), make_project()
    texts = {playground.playground_key(user, where, NOW) for user in (maria, paul) for where in (project, other)}
    assert len(texts) == 4


def test_a_key_near_its_end_is_given_a_new_text_and_stays_the_same_key() -> None:
    user, project = make_person(), make_project()
    first = playground.playground_key(user, project, NOW)
    second = playground.playground_key(user, project, NOW + dt.timedelta(minutes=55))
    key = ApiKey.objects.get()
    assert first != second
    assert key.secret_hash == services.hash_key(second)
    assert key.expires_at == NOW + dt.timedelta(minutes=115)


def test_a_revoked_key_stays_revoked_and_another_is_made() -> None:
    user, project = make_person(), make_project()
    playground.playground_key(user, project, NOW)
    revoked = services.revoke_key(ApiKey.objects.get(), NOW)
    playground.playground_key(user, project, NOW)
    assert ApiKey.objects.count() == 2
    assert ApiKey.objects.get(pk=revoked.pk).revoked_at == NOW


def test_a_key_whose_expiry_somebody_changed_works_again() -> None:
    user, project = make_person(), make_project()
    playground.playground_key(user, project, NOW)
    services.update_key(ApiKey.objects.get(), expires_at=NOW + dt.timedelta(days=1), now=NOW)
    text = playground.playground_key(user, project, NOW)
    assert ApiKey.objects.get().secret_hash == services.hash_key(text)


def test_a_key_made_by_hand_under_that_name_is_left_alone() -> None:
    user, project = make_person(), make_project()
    by_hand, text = make_key(project=project, name="playground of maria", actor="maria")
    assert playground.playground_key(user, project, NOW) != text
    by_hand.refresh_from_db()
    assert by_hand.secret_hash == services.hash_key(text)


def test_the_page_of_its_key_says_what_it_is_and_has_no_examples(client: Client, admin: User) -> None:
    project = make_project()
    text = playground.playground_key(admin, project, NOW)
    client.force_login(admin)
    shown = client.get(reverse("admin:apikeys_apikey_change", args=[ApiKey.objects.get().pk])).content.decode()
    assert "The playground's own key" in shown
    assert "STOKEHOLD_KEY" not in shown
    assert text not in shown
    by_hand, _ = make_key(project=project)
    assert "STOKEHOLD_KEY" in client.get(reverse("admin:apikeys_apikey_change", args=[by_hand.pk])).content.decode()


def test_a_project_that_is_off_has_no_playground() -> None:
    user, project = make_person(), make_project(active=False)
    with pytest.raises(ProjectOff):
        playground.playground_key(user, project, NOW)


# ------------------------------------------------------------------------------------------------ who may use it


def test_members_owners_and_those_who_may_make_keys_may_try_a_project() -> None:
    mine, other, off = make_project(), make_project(), make_project(active=False)
    member, owner, stranger = make_person("member"), make_person("owner"), make_person("stranger")
    for project in (mine, off):
        services.set_member(project, member, "member")
    services.set_member(mine, owner, "owner")
    assert list(playground.projects_to_try(member)) == [mine]
    assert list(playground.projects_to_try(owner)) == [mine]
    assert list(playground.projects_to_try(stranger)) == []
    assert set(playground.projects_to_try(make_person("op", group="operator"))) == {mine, other}
    assert list(playground.projects_to_try(make_person("looks", group="viewer"))) == []


@pytest.mark.parametrize("who", ["stranger", "viewer"])
def test_a_project_of_others_is_refused_and_no_key_is_made(client: Client, who: str) -> None:
    client.force_login(make_person(group="viewer" if who == "viewer" else ""))
    answer = ask(client, make_project().pk)
    assert (answer.status_code, answer.json()["code"]) == (403, "project_not_allowed")
    assert answer.json()["remedy"]
    assert not ApiKey.objects.exists()


@pytest.mark.parametrize("staff", [True, False])
def test_somebody_signed_out_or_not_of_the_staff_is_told_to_sign_in(client: Client, staff: bool) -> None:
    project = make_project()
    if not staff:
        user = make_person(staff=False)
        services.set_member(project, user, "owner")
        client.force_login(user)
    assert (ask(client, project.pk).status_code, ask(client, project.pk).json()["code"]) == (401, "signed_out")
    assert client.get(reverse("admin:playground")).status_code == 302


def test_another_site_cannot_make_a_browser_ask(admin: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin)
    assert ask(client, make_project().pk).status_code == 403
    assert not ApiKey.objects.exists()


@pytest.mark.parametrize("body", ["text", [], None, 3])
def test_what_the_page_never_sends_is_refused(client: Client, admin: User, body: Any) -> None:
    client.force_login(admin)
    answer = ask(client, make_project().pk, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert ask(client, "no-id").status_code == 400
    assert client.get(reverse("admin:playground_ask")).status_code == 405


def test_the_page_offers_the_models_and_says_why_one_is_not_ready(client: Client) -> None:
    user, project = make_person(), make_project(name="support")
    services.set_member(project, user, "member")
    make_deployment(name="chat")
    client.force_login(user)
    text = client.get(reverse("admin:playground")).content.decode()
    assert "support" in text
    assert "chat (not ready)" in text
    assert not ApiKey.objects.exists()


def test_without_a_project_the_page_says_what_to_do(client: Client) -> None:
    client.force_login(make_person())
    assert "Ask an owner" in client.get(reverse("admin:playground")).content.decode()


# ------------------------------------------------------------------------------------------------ the whole way


@pytest.fixture
def served(transactional_db: None, settings: Settings, tmp_path: Path) -> Iterator[Served]:
    master = Master(tmp_path / "master", test_database_url())
    settings.CA_DIR = master.home.ca
    secrets = master.home.secrets()
    settings.KEY_PEPPER, settings.SECRET_KEY = secrets["key_pepper"], secrets["secret_key"]  # of sessions, too
    with serving(tmp_path, master, FakeEngine(pause_s=0.05)) as running:
        yield running


class Browser:
    """Signed in, as a page of ours is."""

    def __init__(self, served: Served, user: User) -> None:
        client = Client()
        client.force_login(user)
        self._cookies = {"stokehold_session": client.cookies["stokehold_session"].value, "stokehold_csrf": "a" * 32}
        self._url = served.master.url + reverse("admin:playground_ask")

    def ask(self, project: Any, timeout_s: float = 30.0, **changes: Any) -> requests.Response:
        return requests.post(
            self._url,
            json={"project": str(project), "body": {**BODY, **changes}},
            cookies=self._cookies,
            headers={"X-CSRFToken": "a" * 32},
            stream=True,
            timeout=timeout_s,
        )


def events(text: str) -> list[tuple[str, Any]]:
    """(event, data) of each block."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if data := fields.get("data"):
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def test_an_answer_comes_as_it_is_made_and_is_counted_for_the_project(served: Served, admin: User) -> None:
    project = make_project()
    answer = Browser(served, admin).ask(project.pk, stream=True, stream_options={"include_usage": True})
    assert answer.status_code == 200
    pieces = list(answer.iter_content(None))
    assert len(pieces) > len(served.engine.words)  # one by one, not in one lump at the end
    (first, head), *rest = events(b"".join(pieces).decode())
    assert first == "answer"
    assert head["status"] == 200
    assert head["headers"]["x-request-id"]
    assert rest[-1] == ("", "[DONE]")
    said = [data["choices"][0]["delta"].get("content") or "" for _, data in rest[:-1] if data["choices"]]
    assert "".join(said) == "".join(served.engine.words)
    wait_for(lambda: UsageHour.objects.filter(project=project, status=200).exists(), within_s=15, what="usage")
    assert UsageHour.objects.get().key.name == "playground of root"


def test_an_answer_that_is_no_stream_comes_whole(served: Served, admin: User) -> None:
    found = events(Browser(served, admin).ask(make_project().pk).text)
    assert [name for name, _ in found] == ["answer", "body"]
    assert json.loads(found[1][1])["choices"][0]["message"]["content"] == "".join(served.engine.words)


def test_the_gateways_own_refusals_reach_the_page(served: Served, admin: User) -> None:
    project = make_project()
    limited = make_project(requests_per_minute=1)
    browser = Browser(served, admin)
    (_, head), (_, body) = events(browser.ask(project.pk, model="no-such").text)
    assert (head["status"], json.loads(body)["error"]["code"]) == (404, "model_not_found")
    assert events(browser.ask(limited.pk).text)[0][1]["status"] == 200
    (_, head), _ = events(browser.ask(limited.pk).text)
    assert head["status"] == 429
    assert int(head["headers"]["retry-after"]) >= 1


def test_stop_reaches_the_engine(served: Served, admin: User) -> None:
    served.engine.words = ("word",) * 5000  # minutes of them
    answer = Browser(served, admin).ask(make_project().pk, stream=True)
    pieces = answer.iter_content(None)  # kept: a generator that is collected closes its connection
    first = next(pieces).decode()
    assert '"status": 200' in first, first
    wait_for(lambda: served.engine.active == 1, within_s=10, what="the engine's work")
    answer.close()
    wait_for(lambda: served.engine.active == 0, within_s=5, what="the engine's end")
    assert served.engine.aborted


def test_stop_reaches_the_engine_before_its_first_word_too(served: Served, admin: User) -> None:
    served.engine.delay_s = 60
    browser, project = Browser(served, admin), make_project()
    browser.ask(project.pk, model="no-such").close()  # makes the key known: what follows is at the engine at once
    with pytest.raises(requests.Timeout):
        browser.ask(project.pk, stream=True, timeout_s=3)
    assert served.engine.requests
    wait_for(lambda: served.engine.active == 0, within_s=5, what="the engine's end")


def test_a_gateway_that_is_away_is_told_with_what_to_do(served: Served, admin: User) -> None:
    served.stop_gateway()
    ((name, problem),) = events(Browser(served, admin).ask(make_project().pk).text)
    assert name == "failure"
    assert problem["code"] == "gateway_away"
    assert served.gateway_url in problem["message"]
    assert "stokehold status" in problem["remedy"]
