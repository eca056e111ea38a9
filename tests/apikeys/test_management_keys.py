"""Management keys: what one may do, who makes and sees them, and whom the audit log names."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apikeys.errors import NotForOthers
from apikeys.management_keys import create_management_key, revoke_management_key
from apikeys.models import ManagementKey, Project

pytestmark = pytest.mark.django_db
KEYS, PROJECTS = "/api/v1/management-keys/", "/api/v1/projects/"


def make_person(name: str = "maria", *, group: str = "", **fields: Any) -> User:
    user = User.objects.create_user(name, password="correct horse battery", **{"is_staff": True, **fields})
    if group:
        user.groups.add(Group.objects.get(name=group))
    return user


def make_key(user: User, **fields: Any) -> tuple[ManagementKey, str]:
    return create_management_key(user, **{"name": "ci", "by": user, "now": timezone.now(), **fields})


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_a_key_reads_as_its_person_and_changes_nothing(client: Client, admin: User) -> None:
    key, text = make_key(admin)
    assert client.get(PROJECTS, headers=bearer(text)).status_code == 200
    refused = client.post(PROJECTS, {"name": "new"}, "application/json", headers=bearer(text))
    assert (refused.status_code, refused.json()["code"]) == (403, "read_only_key")
    assert "may change" in refused.json()["remedy"]
    assert not Project.objects.filter(name="new").exists()
    key.refresh_from_db()
    assert key.last_used_at is not None


def test_a_key_that_may_change_does_what_its_person_may_and_no_more(client: Client) -> None:
    _, text = make_key(make_person("op", group="operator"), read_only=False)
    assert client.post(PROJECTS, {"name": "new"}, "application/json", headers=bearer(text)).status_code == 201
    _, looks = make_key(make_person("looks", group="viewer"), read_only=False)
    assert client.post(PROJECTS, {"name": "more"}, "application/json", headers=bearer(looks)).status_code == 403


@pytest.mark.parametrize("why", ["revoked", "expired", "off", "elsewhere", "secret", "unknown", "form"])
def test_a_key_that_is_not_good_gets_the_same_words_for_every_reason(client: Client, admin: User, why: str) -> None:
    now = timezone.now()
    networks = ["10.1.0.0/16"] if why == "elsewhere" else None
    key, text = make_key(admin, expires_at=now + dt.timedelta(hours=1), allowed_networks=networks)
    if why == "revoked":
        revoke_management_key(key, now)
    elif why == "expired":
        ManagementKey.objects.update(expires_at=now - dt.timedelta(seconds=1))
    elif why == "off":
        User.objects.filter(pk=admin.pk).update(is_active=False)
    elif why == "secret":
        text = text[:-1] + ("a" if text[-1] != "a" else "b")
    elif why == "unknown":
        text = text.replace(key.pk, "zzzzzzzz")
    elif why == "form":
        text = text[:-5]
    answer = client.get(PROJECTS, headers=bearer(text))
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_management_key")
    assert "unknown, revoked, expired, or not for this network" in answer.json()["detail"]
    assert key.pk not in answer.content.decode()


def test_a_network_is_the_connections_own_whatever_a_header_says(client: Client, admin: User) -> None:
    _, text = make_key(admin, allowed_networks=["10.1.0.0/16"])
    assert client.get(PROJECTS, headers=bearer(text), REMOTE_ADDR="10.1.2.3").status_code == 200
    spoofed = {**bearer(text), "X-Forwarded-For": "10.1.2.3"}
    assert client.get(PROJECTS, headers=spoofed, REMOTE_ADDR="192.0.2.7").status_code == 401


def test_it_is_made_with_a_session_shown_once_and_kept_as_a_hash(client: Client, admin: User) -> None:
    client.force_login(admin)
    made = client.post(KEYS, {"name": "ci"}, "application/json")
    assert made.status_code == 201
    assert "no-store" in made.headers["Cache-Control"]
    told = made.json()
    assert (told["user"], told["read_only"]) == ("root", True)
    assert told["key"].startswith(told["prefix"] + "-")
    assert "key" not in client.get(f"{KEYS}{told['id']}/").json()
    secret = told["key"].rpartition("-")[2]
    assert secret not in json.dumps(list(ManagementKey.objects.values()), default=str)
    assert client.post(f"{KEYS}{told['id']}/revoke/").json()["revoked_at"]
    assert client.get(PROJECTS, headers=bearer(told["key"])).status_code in (401, 403)


def test_a_key_makes_no_key(client: Client, admin: User) -> None:
    _, text = make_key(admin, read_only=False)
    refused = client.post(KEYS, {"name": "heir"}, "application/json", headers=bearer(text))
    assert (refused.status_code, refused.json()["code"]) == (403, "key_makes_no_keys")
    assert ManagementKey.objects.count() == 1


def test_nobody_gets_a_key_of_somebody_else(client: Client, admin: User) -> None:
    operator = make_person("op", group="operator")
    with pytest.raises(NotForOthers):
        make_key(admin, by=operator)
    client.force_login(operator)
    refused = client.post(KEYS, {"name": "up", "user": "root"}, "application/json")
    assert (refused.status_code, refused.json()["code"]) == (403, "not_for_others")
    client.post(reverse("admin:apikeys_managementkey_add"), {"name": "up", "user": "root", "read_only": "on"})
    assert not ManagementKey.objects.exists()
    client.force_login(admin)
    assert client.post(KEYS, {"name": "robot", "user": "op"}, "application/json").json()["user"] == "op"


def test_people_see_and_revoke_their_own_and_who_manages_people_all(client: Client, admin: User) -> None:
    operator, other = make_person("op", group="operator"), make_person("other")
    mine, _ = make_key(operator)
    theirs, _ = make_key(other)
    client.force_login(operator)
    assert [row["id"] for row in client.get(KEYS).json()["results"]] == [mine.pk]
    assert client.post(f"{KEYS}{theirs.pk}/revoke/").status_code == 404
    assert client.post(reverse("admin:apikeys_managementkey_revoke", args=[theirs.pk])).status_code == 404
    theirs.refresh_from_db()
    assert theirs.revoked_at is None
    client.force_login(make_person("chief", group="admin"))
    assert {row["id"] for row in client.get(KEYS).json()["results"]} == {mine.pk, theirs.pk}
    client.post(reverse("admin:apikeys_managementkey_revoke", args=[theirs.pk]))
    theirs.refresh_from_db()
    assert theirs.revoked_at is not None


def test_the_pages_make_and_show_a_key_once(client: Client) -> None:
    client.force_login(make_person())
    form = {"name": "nightly", "user": "maria", "read_only": "on", "allowed_networks": "10.0.0.0/8"}
    made = client.post(reverse("admin:apikeys_managementkey_add"), form)
    text = made.context["text"]
    assert text in made.content.decode()
    assert "no-store" in made.headers["Cache-Control"]
    shown = client.get(reverse("admin:apikeys_managementkey_changelist")).content.decode()
    assert "nightly" in shown
    assert text not in shown
    key = ManagementKey.objects.get()
    assert (key.allowed_networks, key.created_by) == (["10.0.0.0/8"], "maria")
    bad = client.post(reverse("admin:apikeys_managementkey_add"), {**form, "allowed_networks": "nowhere"})
    assert "nowhere" in bad.content.decode()
    assert ManagementKey.objects.count() == 1


def test_the_command_prints_a_key_once_and_says_what_is_wrong(capsys: pytest.CaptureFixture[str], admin: User) -> None:
    call_command("create_management_key", "root", name="ci", write=True, days=3, json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["read_only"] is False
    assert ManagementKey.objects.get().expires_at is not None
    with pytest.raises(CommandError, match="no user 'nobody'"):
        call_command("create_management_key", "nobody", name="ci")
    with pytest.raises(CommandError, match=r"CIDR|networks"):
        call_command("create_management_key", "root", name="ci", network=["x"])


@pytest.mark.parametrize("how", ["session", "token", "key"])
def test_the_audit_log_names_who_changed_it(client: Client, admin: User, how: str) -> None:
    headers = {}
    if how == "session":
        client.force_login(admin)
    elif how == "token":
        asked = {"username": "root", "password": "correct horse battery"}
        admin.set_password(asked["password"])
        admin.save()
        token = client.post("/api/v1/auth/token", asked, "application/json").json()["access"]
        headers = bearer(token)
    else:
        headers = bearer(make_key(admin, read_only=False)[1])
    spoofed = {**headers, "X-Forwarded-For": "not-an-address"}
    made = client.post(PROJECTS, {"name": "audited"}, "application/json", headers=spoofed)
    assert made.status_code == 201
    entry = LogEntry.objects.get(object_pk=made.json()["id"])
    assert (entry.actor, entry.remote_addr) == (admin, "127.0.0.1")
