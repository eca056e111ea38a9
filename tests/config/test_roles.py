"""Every address of the REST API, asked by every role: nothing is open, read or changed by accident."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator

from apikeys.management_keys import create_management_key
from apikeys.models import Project
from apikeys.services import set_member
from tests.factories import make_deployment, make_key, make_project, make_server

pytestmark = pytest.mark.django_db
OPEN = {
    ("post", "/api/v1/auth/token"),
    ("post", "/api/v1/auth/token/refresh"),
    ("post", "/api/v1/join"),
    ("get", "/api/v1/join/ca"),
}
"""For those who have no account yet."""
OWN = ("/api/v1/projects", "/api/v1/keys", "/api/v1/usage", "/api/v1/management-keys", "/api/v1/auth", "/api/v1/me")
"""Of these, everybody sees what is their own."""
HUB = "/api/v1/hub/"
"""Looked at with the installation's tokens, by those who may import; it may be away."""

ADMINISTRATORS_ONLY = ("/allow-pickle/",)


class Operation(NamedTuple):
    method: str
    path: str


def operations() -> list[Operation]:
    paths = SchemaGenerator().get_schema(request=None, public=True)["paths"]
    found = [Operation(method, path) for path, methods in paths.items() for method in methods if method != "parameters"]
    return [one for one in found if tuple(one) not in OPEN]


def statuses(client: Client, method: str, headers: dict[str, str] | None = None) -> dict[Operation, int]:
    """By operation that reads (`get`), or that changes (any other)."""
    body = json.dumps({"name": "new", "project": str(Project.objects.first().pk)})
    asked: dict[Operation, int] = {}
    for one in operations():
        if (one.method == "get") == (method == "get"):
            path = re.sub(r"\{(user|quota)_id\}", "1", one.path)
            path = re.sub(r"\{[^}]*\}", str(UUID(int=1)), path)
            send = client.generic(one.method.upper(), path, body, "application/json", headers=headers or {})
            asked[one] = send.status_code
    return asked


def person(group: str = "", **fields: Any) -> User:
    user = User.objects.create_user(group or "somebody", password="x", **{"is_staff": True, **fields})
    if group:
        user.groups.add(Group.objects.get(name=group))
    return user


@pytest.fixture(autouse=True)
def rows() -> Project:
    make_server()
    make_deployment()
    project = make_project()
    make_key(project=project)
    return project


def test_there_is_something_to_ask() -> None:
    assert len(operations()) > 60


def test_without_an_account_everything_is_refused(client: Client) -> None:
    asked = {**statuses(client, "get"), **statuses(client, "change")}
    assert {one: status for one, status in asked.items() if status != 401} == {}


def test_a_viewer_reads_everything_and_changes_nothing(client: Client) -> None:
    client.force_login(person("viewer"))
    read = {one: status for one, status in statuses(client, "get").items() if not one.path.startswith(HUB)}
    assert {one: status for one, status in read.items() if status not in (200, 400, 404)} == {}
    assert {one for one, status in read.items() if "{" not in one.path and status not in (200, 400)} == set()
    changed = statuses(client, "change")
    own = {one for one in changed if one.path.startswith("/api/v1/management-keys")}
    assert {one: status for one, status in changed.items() if status not in (403, 404) and one not in own} == {}


def test_somebody_who_is_not_of_the_staff_sees_their_own_only(client: Client, rows: Project) -> None:
    user = person(is_staff=False)
    set_member(rows, user)
    client.force_login(user)
    read = statuses(client, "get")
    others = {one: status for one, status in read.items() if not one.path.startswith(OWN)}
    assert {one: status for one, status in others.items() if status not in (403, 404)} == {}
    changed = {one: status for one, status in statuses(client, "change").items() if not one.path.startswith(OWN)}
    assert {one: status for one, status in changed.items() if status not in (403, 404)} == {}


def test_an_operator_is_kept_from_people_and_from_letting_files_run_code_only(client: Client) -> None:
    client.force_login(person("operator"))
    asked = {**statuses(client, "get"), **statuses(client, "change")}
    refused = {one: status for one, status in asked.items() if status in (401, 403, 500)}
    assert refused == dict.fromkeys([one for one in asked if one.path.endswith(ADMINISTRATORS_ONLY)], 403)


def test_a_key_that_reads_only_changes_nothing_even_of_a_superuser(client: Client, admin: User) -> None:
    _, text = create_management_key(admin, name="ci", by=None, now=timezone.now())
    headers = {"Authorization": f"Bearer {text}"}
    read = {one: s for one, s in statuses(client, "get", headers).items() if not one.path.startswith(HUB)}
    assert {one: s for one, s in read.items() if s not in (200, 400, 404)} == {}
    assert {one: s for one, s in statuses(client, "change", headers).items() if s != 403} == {}
