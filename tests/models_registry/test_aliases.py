"""Aliases: they move by hand, `latest` by itself, and what they name stays."""

import datetime as dt

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone

from models_registry import aliases, removal, services
from models_registry.errors import AliasInUse, InvalidAlias, NotReady, UnknownVersion, VersionInUse, VersionTaken
from models_registry.models import AliasMove, ModelAlias, ModelVersion, VersionState
from tests.factories import make_deployment, make_model_version
from tests.models_registry.factories import NOW, VALUES, make_version, write_gguf
from tests.models_registry.test_api import client_of

pytestmark = pytest.mark.django_db
URL = "/api/v1/model-aliases/"


@pytest.fixture
def two(tmp_path) -> tuple[ModelVersion, ModelVersion]:
    return tuple(imported(tmp_path, number) for number in (1, 2))


def imported(tmp_path, number: int) -> ModelVersion:
    path = write_gguf(tmp_path / str(number), values={**VALUES, "general.name": str(number)})
    return services.import_path("tiny", path, now=NOW + dt.timedelta(hours=number))


def moves(name: str) -> list[tuple[str, str, str]]:
    return [(row.by, row.from_version, row.to_version) for row in AliasMove.objects.filter(name=name).order_by("id")]


def test_latest_is_the_newest_version_that_is_ready(two):
    alias = ModelAlias.objects.get()
    assert (str(alias), alias.version, alias.pinned) == ("tiny@latest", two[1], False)
    assert [one[1:] for one in moves("latest")] == [("", "1"), ("1", "2")]


def test_a_latest_that_was_pinned_stays_until_it_is_released(two, tmp_path):
    first, _ = two
    alias = aliases.set_alias(first, "latest", by="ann", now=NOW)
    third = imported(tmp_path, 3)
    alias.refresh_from_db()
    assert alias.version == first
    aliases.release_latest(alias, by="ann", now=NOW)
    alias.refresh_from_db()
    assert (alias.version, alias.pinned) == (third, False)


def test_an_alias_is_made_moved_and_deleted_and_its_history_stays(two):
    first, second = two
    aliases.set_alias(first, "prod", by="ann", now=NOW)
    aliases.set_alias(second, "prod", by="bob", now=NOW)
    aliases.set_alias(second, "prod", by="bob", now=NOW)
    alias = aliases.resolve("tiny@prod").alias
    assert (alias.version, alias.moved_by) == (second, "bob")
    aliases.delete_alias(alias, by="eve", now=NOW)
    assert moves("prod") == [("ann", "", "1"), ("bob", "1", "2"), ("eve", "2", "")]


@pytest.mark.parametrize("name", ["", "3", "a b", "-x", "a" * 41, "1"])
def test_a_name_that_could_be_a_version_is_no_alias(two, name):
    with pytest.raises(InvalidAlias):
        aliases.set_alias(two[0], name, by="", now=NOW)


def test_only_a_version_that_is_ready_can_be_named(two):
    ModelVersion.objects.filter(pk=two[0].pk).update(state=VersionState.FAILED)
    with pytest.raises(NotReady):
        aliases.set_alias(two[0], "prod", by="", now=NOW)


def test_a_version_gets_no_alias_s_name(two, tmp_path):
    aliases.set_alias(two[0], "prod", by="", now=NOW)
    for name in ("prod", "latest"):
        with pytest.raises(VersionTaken, match="is an alias"):
            make_version(write_gguf(tmp_path / "x", tensors=(("t", (32,), 0),)), version=name)


def test_a_version_that_an_alias_names_is_not_deleted(two):
    alias = aliases.set_alias(two[0], "prod", by="", now=NOW)
    with pytest.raises(VersionInUse, match="tiny@prod"):
        removal.delete_version(two[0])
    aliases.delete_alias(alias, by="", now=NOW)
    removal.delete_version(two[0])
    assert not ModelVersion.objects.filter(pk=two[0].pk).exists()


def test_latest_steps_back_when_the_newest_version_goes_and_goes_with_the_last(two):
    first, second = two
    removal.delete_version(second, by="ann")
    assert ModelAlias.objects.get().version == first
    assert moves("latest")[-1] == ("ann", "2", "1")
    removal.delete_version(first)
    assert not ModelAlias.objects.exists()


def test_an_alias_that_a_deployment_follows_is_not_deleted(two):
    alias = aliases.set_alias(two[0], "prod", by="", now=NOW)
    make_deployment(name="chat", model_version=two[0], alias=alias)
    with pytest.raises(AliasInUse, match="chat"):
        aliases.delete_alias(alias, by="", now=NOW)


def test_latest_of_models_from_before_there_were_aliases_is_made(django_assert_max_num_queries):
    old = make_model_version(name="old")
    newer = make_model_version(name="old")
    make_model_version(name="strange", version="latest")
    assert aliases.settle_all(timezone.now()) == 1
    assert aliases.resolve("old@latest").version == newer
    with django_assert_max_num_queries(2):
        assert aliases.settle_all(timezone.now()) == 0
    ModelVersion.objects.filter(pk=old.pk).update(created_at=timezone.now() + dt.timedelta(hours=1))
    assert aliases.settle_all(timezone.now()) == 1
    assert aliases.resolve("old@latest").version == old


def test_versions_are_found_by_number_by_alias_and_by_being_newest(two):
    assert aliases.resolve("tiny").version == two[1]
    assert aliases.resolve("tiny:1").version == two[0]
    assert aliases.resolve("tiny@latest").version == two[1]
    for text in ("tiny:9", "tiny@nothing", "other", "other@latest", "", "@"):
        with pytest.raises(UnknownVersion):
            aliases.resolve(text)


def test_the_command_shows_moves_and_deletes(two, capsys):
    call_command("alias_model", "tiny", "prod", "1")
    assert "tiny@prod -> 1" in capsys.readouterr().out
    call_command("alias_model", "tiny", "latest", "1")
    call_command("alias_model", "tiny", "latest", follow=True)
    assert "tiny@latest -> 2 (follows the newest)" in capsys.readouterr().out
    call_command("alias_model", "tiny", "prod", delete=True)
    assert moves("prod")[-1] == ("command line", "1", "")
    for arguments in (("tiny", "prod"), ("tiny", "prod", "9"), ("tiny", "nothing")):
        with pytest.raises(CommandError):
            call_command("alias_model", *arguments)


@pytest.mark.urls("tests.models_registry.urls")
def test_aliases_over_rest(two):
    operator = client_of("view_model", *(f"{verb}_modelalias" for verb in ("view", "add", "change", "delete")))
    made = operator.post(URL, {"name": "prod", "model_version": two[0].pk}).json()
    assert (made["model"], made["version"], made["pinned"], made["followers"]) == ("tiny", "1", True, [])
    moved = operator.patch(f"{URL}{made['id']}/", {"model_version": two[1].pk}).json()
    assert (moved["version"], moved["moved_by"]) == ("2", "u0")
    shown = operator.get(f"{URL}{made['id']}/history/").json()["results"]
    assert [(one["from_version"], one["to_version"]) for one in shown] == [("1", "2"), ("", "1")]
    assert operator.get(f"{URL}?model=tiny&name=prod").json()["count"] == 1
    for body in ({}, {"pinned": False}, {"pinned": True}):
        assert operator.patch(f"{URL}{made['id']}/", body).status_code == 400
    other = make_model_version(name="other")
    refused = operator.patch(f"{URL}{made['id']}/", {"model_version": other.pk})
    assert refused.json()["code"] == "invalid_alias"
    assert operator.delete(f"{URL}{made['id']}/").status_code == 204
    told = operator.get(f"/api/v1/models/{two[0].model_id}/alias-moves/").json()["results"]
    assert {("prod", "2", ""), ("prod", "1", "2")} <= {
        (row["name"], row["from_version"], row["to_version"]) for row in told
    }
    assert client_of("view_modelalias").post(URL, {"name": "x", "model_version": two[0].pk}).status_code == 403
