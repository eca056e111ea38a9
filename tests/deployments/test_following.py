"""Deployments that follow an alias roll out what it moves to: by themselves, and once."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable

import pytest
from django.core.management import call_command
from django.db import connections

from deployments import following, services
from deployments.errors import InvalidSpec
from deployments.models import Deployment, Event
from models_registry import aliases, removal
from models_registry.models import ModelAlias, ModelVersion
from tests.deployments.agents import Agents, servers, state
from tests.factories import make_model_version
from wire.errors import Problem

pytestmark = pytest.mark.django_db
NOW = dt.datetime(2026, 3, 5, 12, 30, tzinfo=dt.UTC)


@pytest.fixture
def versions() -> list[ModelVersion]:
    return [make_model_version(name="tiny", version=str(number)) for number in (1, 2)]


def follow(world: Agents, version: ModelVersion, **fields) -> Deployment:
    alias = aliases.set_alias(version, "prod", by="ann", now=world.now)
    return services.create_deployment(name="chat", alias=alias, now=world.now, **fields)


def test_a_moved_alias_rolls_out_by_itself(world: Agents, versions) -> None:
    servers(world, "a")
    deployment = follow(world, versions[0])
    world.run()
    aliases.set_alias(versions[1], "prod", by="bob", now=world.now)
    world.run()
    deployment.refresh_from_db()
    assert (deployment.revision.number, deployment.revision.model_version) == (2, versions[1])
    assert deployment.revision.created_by == "alias tiny@prod, moved by bob"
    assert state(deployment) == "ready"
    event = Event.objects.get(kind="deployment.changed")
    assert event.message == "chat was changed by alias tiny@prod, moved by bob: revision 2 with tiny:2."


def test_looking_again_makes_no_second_revision(world: Agents, versions) -> None:
    deployment = follow(world, versions[0])
    aliases.set_alias(versions[1], "prod", by="bob", now=world.now)
    assert [following.follow_aliases(world.now) for _ in range(3)] == [1, 0, 0]
    assert deployment.revisions.count() == 2


def test_a_move_there_and_back_before_anybody_looked_changes_nothing(world: Agents, versions) -> None:
    deployment = follow(world, versions[0])
    aliases.set_alias(versions[1], "prod", by="bob", now=world.now)
    aliases.set_alias(versions[0], "prod", by="bob", now=world.now)
    assert following.follow_aliases(world.now) == 0
    assert deployment.revisions.count() == 1


def test_a_fixed_version_does_not_follow(world: Agents, versions) -> None:
    aliases.set_alias(versions[0], "prod", by="ann", now=world.now)
    deployment = services.create_deployment(name="chat", model_version=versions[0], now=world.now)
    aliases.set_alias(versions[1], "prod", by="bob", now=world.now)
    assert following.follow_aliases(world.now) == 0
    assert deployment.revisions.count() == 1


def test_a_rollback_and_a_version_by_hand_end_the_following(world: Agents, versions) -> None:
    deployment = follow(world, versions[0])
    aliases.set_alias(versions[1], "prod", by="bob", now=world.now)
    following.follow_aliases(world.now)
    deployment = services.rollback(deployment, 1, now=world.now)
    assert (deployment.alias, deployment.revision.model_version) == (None, versions[0])
    assert following.follow_aliases(world.now) == 0
    alias = aliases.resolve("tiny@prod").alias
    deployment = services.update_deployment(deployment, if_version=None, now=world.now, alias=alias)
    assert (deployment.alias, deployment.revision.model_version) == (alias, versions[1])
    revisions = deployment.revisions.count()
    deployment = services.update_deployment(deployment, if_version=None, now=world.now, model_version=versions[1])
    assert deployment.alias is None
    assert deployment.revisions.count() == revisions
    assert "stays at its version" in Event.objects.filter(deployment=deployment).first().message


def test_other_changes_keep_the_following(world: Agents, versions) -> None:
    deployment = follow(world, versions[0])
    deployment = services.update_deployment(
        deployment, if_version=None, now=world.now, parameters={"context_tokens": 2048}
    )
    assert str(deployment.alias) == "tiny@prod"


def test_what_cannot_be_deployed_is_told_once_and_what_serves_stays(world: Agents, versions) -> None:
    deployment = follow(world, versions[0])
    unfit = make_model_version(name="tiny", version="3", format="other", manifest={"files": []})
    aliases.set_alias(unfit, "prod", by="bob", now=world.now)
    assert [following.follow_aliases(world.now) for _ in range(3)] == [0, 0, 0]
    event = Event.objects.get(kind="deployment.alias_refused")
    assert event.message.startswith("chat follows tiny@prod, but tiny:3 is not deployed")
    assert event.remedy
    deployment.refresh_from_db()
    assert deployment.revision.model_version == versions[0]


def test_a_deployment_that_is_gone_lets_go_of_its_alias(world: Agents, versions) -> None:
    deployment = follow(world, versions[0])
    services.delete(deployment, now=world.now)
    aliases.delete_alias(aliases.resolve("tiny@prod").alias, by="", now=world.now)
    assert following.follow_aliases(world.now) == 0


def test_neither_or_both_of_version_and_foreign_alias_are_refused(world: Agents, versions) -> None:
    alias = aliases.set_alias(versions[0], "prod", by="ann", now=world.now)
    with pytest.raises(InvalidSpec):
        services.create_deployment(name="chat", now=world.now)
    with pytest.raises(InvalidSpec, match="another model"):
        services.create_deployment(name="chat", model_version=make_model_version(), alias=alias, now=world.now)


def test_rest_takes_a_name_with_an_alias_or_a_version(admin_client, world: Agents, versions) -> None:
    aliases.set_alias(versions[0], "prod", by="ann", now=world.now)
    url, kind = "/api/v1/deployments/", "application/json"
    made = admin_client.post(url, {"name": "chat", "model": "tiny@prod"}, kind).json()
    assert (made["alias"], made["revision"]["model"]) == ("tiny@prod", "tiny:1")
    headers = {"If-Match": "*"}
    changed = admin_client.patch(f"{url}{made['id']}/", {"model": "tiny:2"}, kind, headers=headers).json()
    assert (changed["alias"], changed["revision"]["model"]) == (None, "tiny:2")
    assert admin_client.post(url, {"name": "x", "model": "tiny@nothing"}, kind).json()["code"] == "unknown_version"
    both = {"name": "x", "model": "tiny:1", "model_version": versions[0].pk}
    assert admin_client.post(url, both, kind).status_code == 400
    assert admin_client.post(url, {"name": "x"}, kind).json()["code"] == "invalid_spec"


def test_the_command_deploys_an_alias(world: Agents, versions) -> None:
    aliases.set_alias(versions[0], "prod", by="ann", now=world.now)
    call_command("deploy", "chat", "tiny@prod")
    assert str(Deployment.objects.get().alias) == "tiny@prod"


def test_the_form_takes_an_alias_in_place_of_a_version(admin_client, world: Agents, versions) -> None:
    alias = aliases.set_alias(versions[0], "prod", by="ann", now=world.now)
    body = {"name": "chat", "alias": alias.pk, "engine": "llamacpp", "replicas": 1}
    answer = admin_client.post("/admin/deployments/deployment/add/", body)
    assert answer.status_code == 302
    deployment = Deployment.objects.get()
    assert (deployment.alias, deployment.revision.model_version) == (alias, versions[0])
    page = admin_client.get(f"/admin/deployments/deployment/{deployment.pk}/edit/").content.decode()
    assert "tiny@prod" in page
    none = admin_client.post("/admin/deployments/deployment/add/", {**body, "alias": "", "name": "x"})
    assert "Choose a model, or an alias." in none.content.decode()


@pytest.mark.django_db(transaction=True)
def test_controllers_that_look_at_the_same_time_make_one_revision() -> None:
    versions = [make_model_version(name="tiny", version=str(number)) for number in (1, 2)]
    alias = aliases.set_alias(versions[0], "prod", by="ann", now=NOW)
    deployment = services.create_deployment(name="chat", alias=alias, now=NOW)
    aliases.set_alias(versions[1], "prod", by="bob", now=NOW)
    start = threading.Barrier(4, timeout=20)
    failures: list[Exception] = []

    def look() -> None:
        try:
            start.wait()
            following.follow_aliases(NOW)
        except Exception as error:
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not failures
    assert deployment.revisions.count() == 2


@pytest.mark.django_db(transaction=True)
def test_a_version_that_is_named_and_deleted_at_once_is_either(tmp_path, settings) -> None:
    settings.MODEL_STORE_DIR = tmp_path
    version = make_model_version(name="tiny", version="1")
    make_model_version(name="tiny", version="2")
    start = threading.Barrier(2, timeout=20)
    answers: list[str] = []

    def run(act: Callable[[], object]) -> None:
        try:
            start.wait()
            act()
            answers.append("done")
        except Problem as error:
            answers.append(error.code)
        finally:
            connections.close_all()

    acts = (
        lambda: aliases.set_alias(version, "prod", by="ann", now=NOW),
        lambda: removal.delete_version(version, by="bob"),
    )
    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    named = ModelAlias.objects.filter(name="prod").exists()
    assert named == ModelVersion.objects.filter(pk=version.pk).exists()
    assert sorted(answers) == sorted(["done", "version_in_use" if named else "unknown_version"])
