"""Hub tokens of projects: who sees, uses and forgets them, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from apikeys.models import Project
from apikeys.services import set_member
from models_registry import services
from models_registry.hub import services as hub_services
from models_registry.locations.sources import from_hub
from models_registry.models import HubToken, ModelVersion, VersionState
from models_registry.tenants import usable_tokens
from tests.factories import make_project
from tests.fakes.hub import FakeHub, HubFile, serving_hub
from tests.models_registry.factories import NOW, gguf_bytes
from tests.models_registry.workers import work

pytestmark = pytest.mark.django_db(transaction=True)
TOKENS, VERSIONS = "/api/v1/hub-tokens/", "/api/v1/model-versions/"


@pytest.fixture
def hub(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    made = FakeHub(tokens={"hf_token_of_ours": {"org/private"}, "hf_token_of_theirs": {"org/private"}})
    made.repo("org/private", {"tiny.gguf": HubFile(gguf_bytes(), lfs=True)}, private=True)
    settings.MODEL_STORE_DIR, settings.HUB_TOKEN = tmp_path / "store", ""
    monkeypatch.setattr(services, "_enqueue", lambda row: None)
    with serving_hub(made):
        settings.HUB_ENDPOINT = made.url
        yield made


@pytest.fixture
def ours() -> Project:
    return make_project(name="ours")


@pytest.fixture
def theirs() -> Project:
    return make_project(name="theirs")


@pytest.fixture
def tokens(ours: Project, theirs: Project) -> None:
    hub_services.save_token("everybody's", "hf_token_of_all")
    hub_services.save_token("ours", "hf_token_of_ours", str(ours.pk))
    hub_services.save_token("theirs", "hf_token_of_theirs", str(theirs.pk))


@pytest.fixture
def operator(client: Client, ours: Project) -> User:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.groups.add(Group.objects.get_or_create(name="operator")[0])
    set_member(ours, user)
    client.force_login(user)
    return user


def test_a_person_uses_those_of_their_projects_and_of_nobody(
    tokens: None, hub: FakeHub, client: Client, operator: User, theirs: Project
) -> None:
    assert [row["name"] for row in client.get(TOKENS).json()["results"]] == ["everybody's", "ours"]
    other = HubToken.objects.get(name="theirs")
    assert client.get(f"{TOKENS}{other.pk}/").status_code == 404
    assert client.delete(f"{TOKENS}{other.pk}/").status_code == 404
    looked = client.get("/api/v1/hub/model/", {"repo": "org/private", "token": "theirs"})
    assert (looked.status_code, list(looked.json()["errors"])) == (400, ["token"])
    started = client.post(VERSIONS, {"repo": "org/private", "token": "theirs"}, "application/json")
    assert (started.status_code, list(started.json()["errors"])) == (400, ["token"])
    made = client.post(TOKENS, {"name": "x", "token": "hf_something", "project": str(theirs.pk)}, "application/json")
    assert (made.status_code, list(made.json()["errors"])) == (400, ["project"])
    started = client.post(VERSIONS, {"repo": "org/private", "token": "ours"}, "application/json")
    assert started.status_code == 202
    assert work(ModelVersion.objects.get()) == VersionState.READY


def test_a_token_is_kept_for_a_project_by_its_people_and_all_is_open_to_a_superuser(
    tokens: None, client: Client, operator: User, ours: Project, admin: User
) -> None:
    made = client.post(TOKENS, {"name": "mine", "token": "hf_something", "project": str(ours.pk)}, "application/json")
    assert (made.status_code, made.json()["project"]) == (201, str(ours.pk))
    assert usable_tokens(admin).count() == 4


def test_the_pages_show_and_take_the_same(
    tokens: None, hub: FakeHub, client: Client, operator: User, ours: Project, theirs: Project
) -> None:
    listed = client.get(reverse("admin:models_registry_hubtoken_changelist")).content.decode()
    assert "theirs" not in listed
    assert listed.count(">ours<") == 2, "its name, and its project's"
    assert "everybody" in listed
    other = HubToken.objects.get(name="theirs")
    forget = reverse("admin:models_registry_hubtoken_forget", args=[other.pk])
    assert client.post(forget).status_code == 404
    page = reverse("admin:models_registry_modelversion_hub")
    assert "theirs" not in client.get(page).content.decode()
    assert "org/private" not in client.get(page, {"q": "org/private", "token": "theirs"}).content.decode().replace(
        'value="org/private"', ""
    )
    add = reverse("admin:models_registry_hubtoken_add")
    assert "theirs" not in client.get(add).content.decode()
    refused = client.post(add, {"name": "x", "token": "hf_something", "project": str(theirs.pk)})
    assert refused.status_code == 200
    client.post(add, {"name": "new", "token": "hf_something", "project": str(ours.pk)})
    assert HubToken.objects.get(name="new").project == str(ours.pk)
    assert not HubToken.objects.filter(name="x").exists()


def test_they_go_with_their_project(tokens: None, theirs: Project, admin: User) -> None:
    Project.objects.filter(pk=theirs.pk).delete()
    assert [row.name for row in usable_tokens(admin)] == ["everybody's", "ours"]


def test_a_file_comes_again_by_the_token_that_it_came_with_and_by_no_other_projects(
    tokens: None, hub: FakeHub, tmp_path: Path
) -> None:
    row = hub_services.start_hub_import("org/private", token=HubToken.objects.get(name="ours"), now=NOW)
    assert work(row) == VersionState.READY
    (file,) = services.manifest_of(row).files
    assert from_hub(row, file, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == gguf_bytes()
    row.hub_token.delete()
    row.refresh_from_db()
    asked = len(hub.asked)
    assert not from_hub(row, file, tmp_path / "once-more")
    assert not any("hf_token_of_theirs" in str(one) for one in hub.asked[asked:])
