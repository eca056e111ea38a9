"""What may be deployed: licences accepted, and nothing loaded that can run code, unless an administrator allows it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User
from django.utils import timezone

from deployments import engines, services
from deployments.errors import LicenseNotAccepted, PickleRefused
from deployments.permits import manifest_for
from deployments.specs import instance_spec
from models_registry import catalog
from models_registry.errors import InvalidTag, NothingToAllow
from models_registry.models import ModelVersion
from tests.deployments.agents import Agents, state
from tests.factories import make_deployment, make_instance, make_model_version, make_server
from tests.fakes.torch_engine import TorchEngine
from tests.models_registry.factories import make_version, write_gguf, write_safetensors

pytestmark = pytest.mark.django_db
VERSIONS = "/api/v1/model-versions/"


@pytest.fixture(autouse=True)
def torch(settings, tmp_path, monkeypatch) -> None:
    settings.MODEL_STORE_DIR = tmp_path / "store"
    monkeypatch.setitem(engines._ADAPTERS, "torch", TorchEngine())


def create(version: ModelVersion, engine: str = "torch"):
    return services.create_deployment(name="chat", model_version=version, engine=engine, now=timezone.now())


def pickled(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(pickled))
    return folder


def test_a_pickle_is_refused_with_what_it_names(tmp_path) -> None:
    version = make_version(pickled(tmp_path / "m"))
    assert version.flagged
    with pytest.raises(PickleRefused, match=r"pytorch_model\.bin.*test_permits\.pickled") as caught:
        create(version)
    assert "administrator" in caught.value.remedy


def test_an_administrator_may_allow_it_and_take_it_back(tmp_path) -> None:
    version = make_version(pickled(tmp_path / "m"))
    catalog.allow_pickle(version, by="ann", now=timezone.now())
    create(version)
    catalog.forbid_pickle(version, by="ann")
    assert (version.pickle_allowed_by, version.pickle_allowed_at) == ("", None)


def test_pickles_beside_safetensors_or_gguf_are_flagged_and_not_refused(tmp_path) -> None:
    folder = write_safetensors(pickled(tmp_path / "m"))
    version = make_version(folder)
    assert version.flagged
    create(version)
    gguf = make_version(write_gguf(pickled(tmp_path / "g")).parent, name="other")
    assert gguf.flagged
    services.create_deployment(name="two", model_version=gguf, now=timezone.now())


def test_servers_get_no_pickle_that_the_engine_does_not_load(tmp_path) -> None:
    version = make_version(write_gguf(pickled(tmp_path / "g")).parent)
    instance = make_instance(deployment=make_deployment(model_version=version))
    assert [file.path for file in instance_spec(instance).model.files] == ["tiny.gguf"]
    plain = make_version(write_gguf(tmp_path / "p"), name="plain")
    spec = instance_spec(make_instance(deployment=make_deployment(model_version=plain)))
    assert spec.model.digest == plain.digest
    torch = make_version(pickled(tmp_path / "t"), name="torch")
    assert manifest_for(torch, ["pytorch_model.bin"]).digest == torch.digest


def test_a_version_that_was_not_looked_through_is_refused_by_its_names(tmp_path) -> None:
    version = make_version(pickled(tmp_path / "m"))
    ModelVersion.objects.update(scan=None, flagged=None)
    version.refresh_from_db()
    with pytest.raises(PickleRefused) as caught:
        create(version)
    assert "inspect_models" in caught.value.remedy
    services.create_deployment(name="old", model_version=make_model_version(), now=timezone.now())


def test_only_what_is_flagged_is_allowed(tmp_path) -> None:
    with pytest.raises(NothingToAllow):
        catalog.allow_pickle(make_version(write_gguf(tmp_path)), by="ann", now=timezone.now())


@pytest.mark.parametrize("fields", [{"gated": True}, {"license": "Llama3.1"}])
def test_a_licence_that_wants_it_is_accepted_before(settings, fields) -> None:
    settings.LICENSES_TO_ACCEPT = ["llama*"]
    version = make_model_version(**fields)
    with pytest.raises(LicenseNotAccepted) as caught:
        create(version, engine="llamacpp")
    assert "accept" in caught.value.remedy
    catalog.accept_license(version, by="ann", now=timezone.now())
    catalog.accept_license(version, by="bob", now=timezone.now())
    assert version.license_accepted_by == "ann"
    create(version, engine="llamacpp")


def test_other_licences_need_nothing(settings) -> None:
    settings.LICENSES_TO_ACCEPT = ["llama*"]
    version = make_model_version(license="apache-2.0")
    with pytest.raises(NothingToAllow):
        catalog.accept_license(version, by="ann", now=timezone.now())
    create(version, engine="llamacpp")


def test_rest_tells_annotates_accepts_and_allows(admin_client, tmp_path) -> None:
    version = make_version(pickled(tmp_path / "m"), by="command line")
    ModelVersion.objects.update(gated=True)
    url, kind = f"{VERSIONS}{version.pk}/", "application/json"
    shown = admin_client.get(url).json()
    assert shown["files"][0]["flags"] == ["pickle"]
    assert shown["findings"][0]["dangerous"] == ["tests.deployments.test_permits.pickled"]
    assert (shown["imported_by"], shown["license_to_accept"]) == ("command line", True)
    shown = admin_client.patch(url, {"notes": "Good.", "tags": ["Prod", "eu:1"]}, kind).json()
    assert (shown["notes"], shown["tags"]) == ("Good.", ["eu:1", "prod"])
    assert admin_client.patch(url, {"tags": ["a b"]}, kind).json()["code"] == "invalid_tag"
    assert admin_client.post(f"{url}accept-license/").json()["license_accepted_by"] == "admin"
    assert admin_client.post(f"{url}allow-pickle/").json()["pickle_allowed_by"] == "admin"
    assert admin_client.post(f"{url}allow-pickle/", {"allowed": False}, kind).json()["pickle_allowed_at"] is None


def test_an_operator_cannot_allow_pickle(client, tmp_path) -> None:
    version = make_version(pickled(tmp_path / "m"))
    user = User.objects.create_user("op", is_staff=True)
    user.groups.add(Group.objects.get(name="operator"))
    client.force_login(user)
    assert client.post(f"{VERSIONS}{version.pk}/allow-pickle/").status_code == 403
    version.refresh_from_db()
    assert version.pickle_allowed_at is None


def test_lists_are_filtered_by_tag_of_version_or_model(admin_client) -> None:
    one, two = make_model_version(), make_model_version()
    catalog.annotate(one, tags=["prod"])
    catalog.annotate(two.model, tags=["prod-eu"])
    found = admin_client.get(f"{VERSIONS}?tag=prod").json()["results"]
    assert [row["id"] for row in found] == [one.pk]
    assert [row["id"] for row in admin_client.get(f"{VERSIONS}?tag=PROD-eu").json()["results"]] == [two.pk]
    assert admin_client.get("/api/v1/models/?tag=prod-eu").json()["results"][0]["tags"] == ["prod-eu"]
    assert admin_client.get(f"{VERSIONS}?search=prod-eu").json()["count"] == 1
    url = f"/api/v1/models/{one.model_id}/"
    changed = admin_client.patch(url, {"tags": ["b", "a"], "notes": "x"}, "application/json").json()
    assert (changed["tags"], changed["notes"]) == (["a", "b"], "x")


@pytest.mark.parametrize("tags", [["-a"], ["a" * 41], ["ä"], [f"t{n}" for n in range(21)]])
def test_odd_tags_are_refused(tags) -> None:
    with pytest.raises(InvalidTag):
        catalog.annotate(make_model_version(), tags=tags)


def test_an_engine_that_a_release_has_no_more_stops_no_pass(world: Agents, monkeypatch, tmp_path) -> None:
    """Nor do the flagged files of its version; what can be placed is placed."""
    version = make_version(write_safetensors(pickled(tmp_path / "m")))
    make_server(name="a", now=world.now)
    lost = create(version)
    monkeypatch.delitem(engines._ADAPTERS, "torch")
    other = make_deployment(name="other")
    world.run()
    lost.refresh_from_db()
    assert "There is no engine 'torch'" in services.status_of(lost).reason
    assert state(other) == "ready"
