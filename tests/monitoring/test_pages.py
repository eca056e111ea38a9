"""Pages of the admin: permissions, conflicts, keys shown once, and a constant number of queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from apikeys.models import ApiKey
from apikeys.services import set_member
from deployments import services
from deployments.models import Deployment, Event
from fleet.models import Availability, JoinToken, Server, ServerState
from models_registry.models import ModelVersion
from tests.factories import make_deployment, make_instance, make_key, make_model_version, make_project, make_server

pytestmark = pytest.mark.django_db


@pytest.fixture
def page(client: Client, admin: User) -> Client:
    client.force_login(admin)
    return client


def url(name: str, *args: Any) -> str:
    return reverse(f"admin:{name}", args=args)


def make_event(**fields: Any) -> Event:
    return Event.objects.create(at=timezone.now(), kind="test.event", message="It happened.", **fields)


LISTS: dict[str, Callable[[], Any]] = {
    "fleet_server_changelist": lambda: make_instance().server,
    "models_registry_modelversion_changelist": make_model_version,
    "deployments_deployment_changelist": lambda: make_instance().deployment,
    "deployments_event_changelist": lambda: make_event(deployment=make_deployment(), server=make_server()),
    "apikeys_apikey_changelist": make_key,
    "apikeys_project_changelist": make_project,
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_takes_as_many_queries_for_many_rows_as_for_few(page: Client, name: str) -> None:
    LISTS[name]()
    page.get(url(name))
    with CaptureQueriesContext(
        connection,
    ) as few:
        assert page.get(url(name)).status_code == 200
    for _ in range(8):
        LISTS[name]()
    page.get(url(name))  # what a model needs of a server is asked once
    with CaptureQueriesContext(connection) as many:
        assert page.get(url(name)).status_code == 200
    assert len(many) <= len(few)


@pytest.mark.parametrize(
    "name",
    [
        "index",
        "fleet_gateway_changelist",
        "fleet_jointoken_changelist",
        "fleet_server_add",
        "models_registry_modelversion_add",
        "deployments_deployment_add",
        "deployments_route_changelist",
        "deployments_route_add",
        "deployments_provider_changelist",
        "deployments_provider_add",
        "deployments_modelprice_changelist",
        "deployments_modelprice_add",
        "apikeys_apikey_add",
        "apikeys_project_add",
        "apikeys_usagehour_changelist",
        "auth_user_changelist",
        "auth_user_add",
        "auth_group_changelist",
        "auditlog_logentry_changelist",
        "django_celery_beat_periodictask_changelist",
        "django_celery_results_taskresult_changelist",
        "axes_accessattempt_changelist",
    ],
)
def test_a_page_opens_on_an_empty_installation(page: Client, name: str) -> None:
    assert page.get(url(name)).status_code == 200


def test_details_open(page: Client) -> None:
    instance = make_instance()
    key, _ = make_key()
    pages = [
        url("fleet_server_change", instance.server_id),
        url("deployments_deployment_change", instance.deployment_id),
        url("deployments_deployment_edit", instance.deployment_id),
        url("models_registry_modelversion_change", instance.revision.model_version_id),
        url("apikeys_apikey_change", key.pk),
        url("apikeys_apikey_rotate", key.pk),
        url("apikeys_project_change", key.project_id),
        url("apikeys_project_add_quota", key.project_id),
    ]
    assert [page.get(address).status_code for address in pages] == [200] * len(pages)


def test_adding_a_server_shows_a_token_once(page: Client) -> None:
    answer = page.post(url("fleet_server_add"), {"role": "agent", "hours": 1, "note": "rack b2"})
    text = answer.content.decode()
    assert "stk-join-" in text
    assert JoinToken.objects.get().note == "rack b2"
    assert "stk-join-" not in page.get(url("fleet_server_add")).content.decode()


def test_draining_asks_before_it_acts(page: Client) -> None:
    server = make_server()
    address = url("fleet_server_drain", server.pk)
    assert "Drain" in page.get(address).content.decode()
    server.refresh_from_db()
    assert server.availability == Availability.ACTIVE
    page.post(address)
    server.refresh_from_db()
    assert server.availability == Availability.DRAINING


def test_labels_must_be_pairs(page: Client) -> None:
    server = make_server()
    address = url("fleet_server_change", server.pk)
    assert "is not" in page.post(address, {"labels": "no pair"}).content.decode()
    page.post(address, {"labels": "rack=b2"})
    server.refresh_from_db()
    assert server.labels == {"rack": "b2"}


def test_a_deployment_is_made_through_the_form(page: Client) -> None:
    version = make_model_version()
    form = {"name": "chat", "model_version": version.pk, "engine": "llamacpp", "replicas": 2, "p-parallel": "8"}
    answer = page.post(url("deployments_deployment_add"), form)
    row = Deployment.objects.get()
    assert answer.status_code == 302
    assert row.replicas == 2
    assert row.revision is not None
    assert row.revision.parameters == {"parallel": 8}


def test_a_wrong_parameter_is_told_at_its_field(page: Client) -> None:
    version = make_model_version()
    form = {"name": "chat", "model_version": version.pk, "engine": "llamacpp", "replicas": 1, "p-parallel": "0"}
    answer = page.post(url("deployments_deployment_add"), form)
    assert answer.status_code == 200
    assert "p-parallel" in answer.context["form"].errors
    assert not Deployment.objects.exists()


def test_the_preview_says_where_it_would_go(page: Client) -> None:
    make_server(name="atlas")
    version = make_model_version()
    answer = page.post(
        url("deployments_deployment_preview"), {"model_version": version.pk, "engine": "llamacpp", "replicas": 1}
    )
    assert "atlas" in answer.json()["preview"]


def test_the_preview_waits_for_a_model(page: Client) -> None:
    answer = page.post(url("deployments_deployment_preview"), {"engine": "llamacpp", "replicas": 1})
    assert "Choose a model" in answer.json()["preview"]


def test_scaling_an_outdated_page_changes_nothing_and_says_so(page: Client) -> None:
    row = make_deployment(replicas=1)
    services.scale(row, 3, now=timezone.now())
    answer = page.post(
        url("deployments_deployment_scale", row.pk), {"replicas": "5", "version": str(row.version)}, follow=True
    )
    row.refresh_from_db()
    assert row.replicas == 3
    assert "Somebody changed" in answer.content.decode()


def test_updating_an_outdated_form_is_refused(page: Client) -> None:
    row = make_deployment(replicas=1)
    seen = row.version
    services.scale(row, 3, now=timezone.now())
    form = {
        "version": seen,
        "model_version": row.revision.model_version_id,  # type: ignore[union-attr]
        "engine": "llamacpp",
        "replicas": 1,
    }
    answer = page.post(url("deployments_deployment_edit", row.pk), form)
    assert "Somebody changed" in answer.content.decode()
    row.refresh_from_db()
    assert row.replicas == 3


def test_deleting_a_model_in_use_is_refused_in_words(page: Client) -> None:
    row = make_deployment()
    version = row.revision.model_version  # type: ignore[union-attr]
    answer = page.post(url("models_registry_modelversion_delete_page", version.pk), follow=True)
    assert ModelVersion.objects.filter(pk=version.pk).exists()
    assert "Delete these deployments" in answer.content.decode()


def test_a_key_is_shown_once(page: Client) -> None:
    project = make_project()
    answer = page.post(url("apikeys_apikey_add"), {"project": str(project.pk), "name": "bot"})
    text = answer.content.decode()
    key = ApiKey.objects.get()
    assert f"{key.prefix}-" in text
    assert "from openai import OpenAI" in text
    assert "no-store" in answer["Cache-Control"]
    assert f"{key.prefix}-" not in page.get(url("apikeys_apikey_change", key.pk)).content.decode()


def test_a_viewer_may_look_and_not_act(client: Client) -> None:
    user = User.objects.create_user("viewer", password="x", is_staff=True)
    user.groups.add(Group.objects.get(name="viewer"))
    client.force_login(user)
    instance = make_instance()
    assert client.get(url("deployments_deployment_change", instance.deployment_id)).status_code == 200
    assert client.post(url("deployments_deployment_stop", instance.deployment_id)).status_code == 403
    assert client.post(url("fleet_server_revoke", instance.server_id)).status_code == 403
    assert client.get(url("deployments_deployment_add")).status_code == 403
    assert client.post(url("deployments_deployment_preview"), {}).status_code == 403


def test_a_member_sees_only_their_own_projects(client: Client) -> None:
    user = User.objects.create_user("maria", password="x", is_staff=True)
    mine, other = make_project(name="mine"), make_project(name="other")
    set_member(mine, user, "member")
    my_key, _ = make_key(project=mine, name="my-key")
    other_key, _ = make_key(project=other, name="other-key")
    client.force_login(user)
    text = client.get(url("apikeys_apikey_changelist")).content.decode()
    assert "my-key" in text
    assert "other-key" not in text
    assert client.get(url("apikeys_apikey_change", my_key.pk)).status_code == 200
    assert client.get(url("apikeys_apikey_change", other_key.pk)).status_code == 404
    assert client.get(url("apikeys_project_change", other.pk)).status_code == 404
    assert client.post(url("apikeys_apikey_revoke", my_key.pk)).status_code == 403
    assert client.get(url("fleet_server_changelist")).status_code == 403
    assert client.get(url("apikeys_usagehour_changelist"), {"project": str(other.pk)}).status_code == 200


def test_an_owner_makes_and_revokes_keys_of_their_project_only(client: Client) -> None:
    user = User.objects.create_user("maria", password="x", is_staff=True)
    mine, other = make_project(), make_project()
    set_member(mine, user, "owner")
    client.force_login(user)
    client.post(url("apikeys_apikey_add"), {"project": str(mine.pk), "name": "bot"})
    key = ApiKey.objects.get()
    client.post(url("apikeys_apikey_add"), {"project": str(other.pk), "name": "spy"})
    assert ApiKey.objects.count() == 1
    client.post(url("apikeys_apikey_revoke", key.pk))
    key.refresh_from_db()
    assert key.revoked_at is not None


def test_someone_who_manages_people_cannot_become_superuser(client: Client) -> None:
    user = User.objects.create_user("boss", password="x", is_staff=True)
    user.groups.add(Group.objects.get(name="admin"))
    client.force_login(user)
    page = client.get(url("auth_user_change", user.pk)).content.decode()
    assert 'name="is_superuser"' not in page
    assert client.get(url("auth_group_change", Group.objects.get(name="admin").pk)).status_code == 200


def test_nobody_gives_away_or_takes_over_more_than_they_may(client: Client) -> None:
    clerk = User.objects.create_user("clerk", password="x", is_staff=True)
    clerk.groups.add(Group.objects.get(name="viewer"))
    clerk.user_permissions.set(
        Permission.objects.filter(codename__in=("view_user", "change_user", "add_user", "add_group", "delete_group"))
    )
    boss = User.objects.create_user("boss", password="x", is_staff=True)
    boss.groups.add(Group.objects.get(name="admin"))
    peer = User.objects.create_user("peer", password="x", is_staff=True)
    peer.groups.add(Group.objects.get(name="viewer"))
    client.force_login(clerk)
    own, admins = url("auth_user_change", clerk.pk), Group.objects.get(name="admin").pk
    shown = client.get(own).content.decode()
    assert ">viewer<" in shown
    assert ">admin<" not in shown
    client.post(own, {"username": "clerk", "is_active": "on", "is_staff": "on", "groups": [admins]})
    assert [group.name for group in clerk.groups.all()] == ["viewer"]
    assert client.post(url("auth_user_change", boss.pk), {"username": "mine"}).status_code == 403
    assert client.get(url("auth_user_password_change", boss.pk)).status_code == 403
    assert client.get(url("auth_user_change", peer.pk)).status_code == 200
    assert client.get(url("auth_group_add")).status_code == 403
    assert client.post(url("auth_group_delete", admins), {"post": "yes"}).status_code == 403


def test_usage_is_exported_as_csv(page: Client) -> None:
    answer = page.get(url("apikeys_usagehour_changelist"), {"format": "csv"})
    assert answer["Content-Type"] == "text/csv"
    assert b"".join(answer).startswith(b"hour,day,project")  # type: ignore[attr-defined]


def test_audit_entries_cannot_be_deleted(page: Client) -> None:
    make_key()
    from auditlog.models import LogEntry

    entry = LogEntry.objects.first()
    assert entry is not None
    assert page.post(url("auditlog_logentry_delete", entry.pk), {"post": "yes"}).status_code == 403


def test_stopping_what_somebody_else_changed_meanwhile_is_told_and_not_done(page: Client) -> None:
    row = make_deployment(name="chat")
    services.scale(row, 2, now=timezone.now())
    answer = page.post(url("deployments_deployment_stop", row.pk), {"version": "1"}, follow=True)
    assert answer.status_code == 200
    assert "chat" in answer.content.decode()
    assert any("since you opened" in str(message) for message in answer.context["messages"])
    assert Deployment.objects.get().running


def test_where_a_version_lies_says_when_it_was_read_again(page: Client) -> None:
    version, server = make_model_version(), make_server(name="disk")
    model = {"digest": version.digest, "model_name": str(version), "size_bytes": 5, "progress": 1.0, "in_use": False}
    model |= {"held": True, "problem": "", "used_at": 0.0, "from_peers_bytes": 0, "from_master_bytes": 5}
    for told, seen in [({}, "when it came"), ({"verified_at": timezone.now().timestamp() - 7200}, "2 h ago")]:
        cache = {"models": [{**model, **told}], "used_bytes": 5, "quota_bytes": None, "alarm": ""}
        ServerState.objects.update_or_create(server=server, defaults={"cache": cache, "cache_at": timezone.now()})
        for address in (url("fleet_server_change", server.pk), url("models_registry_modelversion_change", version.pk)):
            assert seen in page.get(address).content.decode()


@pytest.mark.parametrize(("kept", "words"), [(1, "at most 1 version of a model"), (2, "at most 2 versions of a model")])
def test_a_server_says_how_many_versions_of_a_model_it_keeps(page: Client, kept: int, words: str) -> None:
    server = make_server()
    Server.objects.filter(pk=server.pk).update(keep_versions=kept)
    cache = {"models": [], "used_bytes": 0, "quota_bytes": None, "alarm": ""}
    ServerState.objects.update_or_create(server=server, defaults={"cache": cache, "cache_at": timezone.now()})
    assert words in page.get(url("fleet_server_change", server.pk)).content.decode()
