"""REST API of models and versions."""

import errno
import gc
from collections import namedtuple

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from rest_framework.test import APIClient

from models_registry.models import Model, ModelVersion
from tests.models_registry.factories import VALUES, files_below, gguf_bytes, make_version, write_gguf
from tests.models_registry.test_services import live_deployment
from tests.models_registry.urls import urlpatterns

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.models_registry.urls")]
VERSIONS = "/api/v1/model-versions/"


def client_of(*permissions: str, staff: bool = True) -> APIClient:
    user = User.objects.create_user(f"u{User.objects.count()}", is_staff=staff)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = APIClient()
    client.force_authenticate(user)
    return client


@pytest.fixture
def operator() -> APIClient:
    actions = ("view", "add", "change", "delete")
    return client_of(*(f"{action}_{model}" for action in actions for model in ("model", "modelversion")))


def test_versions_are_listed_filtered_and_searched(operator, tmp_path):
    make_version(write_gguf(tmp_path / "a"), name="first")
    make_version(write_gguf(tmp_path / "b", values={**VALUES, "general.architecture": "qwen3"}), name="second")
    everything = operator.get(VERSIONS).json()
    assert everything["count"] == 2
    assert "manifest" not in everything["results"][0]
    for query in ("model=first", "search=first", "architecture=llama", "architecture=llama&state=ready&format=gguf"):
        assert [row["model"] for row in operator.get(f"{VERSIONS}?{query}").json()["results"]] == ["first"]
    assert operator.get(f"{VERSIONS}?state=failed").json()["count"] == 0
    assert operator.get(f"{VERSIONS}?ordering=-model__name").json()["results"][0]["model"] == "second"
    assert operator.get(f"{VERSIONS}?state=odd").status_code == 400


def test_a_version_shows_its_files(operator, tmp_path):
    version = make_version(write_gguf(tmp_path))
    shown = operator.get(f"{VERSIONS}{version.pk}/").json()
    assert shown["files"] == [{**file, "flags": []} for file in version.manifest["files"]]
    assert shown["findings"] == []
    assert shown["parameter_count"] == version.parameter_count


def test_lists_cost_a_constant_number_of_queries(operator, tmp_path, django_assert_num_queries):
    def queries(url: str) -> int:
        with django_assert_num_queries(0, exact=False) as captured:
            pass
        with django_assert_num_queries(7, exact=False) as captured:  # permissions (2), count, rows, where they fit (3)
            assert operator.get(url).status_code == 200
        return len(captured)

    make_version(write_gguf(tmp_path), name="m0")
    few = [queries(VERSIONS), queries("/api/v1/models/")]
    for number in range(1, 6):
        make_version(write_gguf(tmp_path), name=f"m{number}")
    assert [queries(VERSIONS), queries("/api/v1/models/")] == [min(few)] * 2 or few


def test_a_path_of_the_master_is_imported(operator, tmp_path, django_capture_on_commit_callbacks):
    body = {"model": "tiny", "path": str(write_gguf(tmp_path))}
    with django_capture_on_commit_callbacks(execute=True):
        answer = operator.post(VERSIONS, body)
    assert answer.status_code == 202
    shown = operator.get(answer.headers["Location"]).json()
    assert (shown["state"], shown["model"], shown["version"]) == ("ready", "tiny", "1")


def test_an_uploaded_file_is_imported_without_passing_through_memory(
    operator, model_store, django_capture_on_commit_callbacks
):
    content = gguf_bytes(tensors=(("t", (1024, 1024), 0),))
    file = SimpleUploadedFile("tiny.gguf", content)
    with django_capture_on_commit_callbacks(execute=True):
        answer = operator.post(VERSIONS, {"model": "tiny", "file": file}, format="multipart")
    assert answer.status_code == 202
    version = ModelVersion.objects.get()
    assert (version.state, version.source) == ("ready", "upload of tiny.gguf")
    assert version.size_bytes == len(content)
    assert not list((model_store / "uploads").iterdir())


def test_an_upload_larger_than_the_disk_is_refused_before_it_is_written(operator, model_store, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("models_registry.uploads.shutil.disk_usage", lambda path: usage(10, 9, 1))
    body = {"model": "tiny", "file": SimpleUploadedFile("tiny.gguf", gguf_bytes())}
    answer = operator.post(VERSIONS, body, format="multipart")
    assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert files_below(model_store) == set()


def test_a_disk_that_fills_during_an_upload_says_so_and_leaves_nothing(operator, model_store, monkeypatch):
    def full(file: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TemporaryUploadedFile, "write", full, raising=False)
    body = {"model": "tiny", "file": SimpleUploadedFile("tiny.gguf", gguf_bytes())}
    answer = operator.post(VERSIONS, body, format="multipart")
    assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
    gc.collect()
    assert files_below(model_store) == set()


def test_a_person_who_may_not_import_is_refused_before_the_upload_is_read(model_store):
    body = {"model": "tiny", "file": SimpleUploadedFile("tiny.gguf", gguf_bytes())}
    assert client_of("view_modelversion").post(VERSIONS, body, format="multipart").status_code == 403
    assert not (model_store / "uploads").exists()


def test_a_refused_upload_leaves_nothing(operator, model_store):
    body = {"model": "a b", "file": SimpleUploadedFile("tiny.gguf", gguf_bytes())}
    answer = operator.post(VERSIONS, body, format="multipart")
    assert answer.status_code == 400
    assert files_below(model_store) == set()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": "tiny"},
        {"model": "tiny", "path": "relative"},
        {"model": "tiny", "path": "/nowhere"},
        {"model": "tiny", "path": "/x\0y"},
        {"model": "../x", "path": "/tmp"},
        {"model": "tiny", "path": "/tmp", "version": "a/b"},
    ],
)
def test_a_bad_import_is_a_problem_document(operator, body):
    answer = operator.post(VERSIONS, body)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["remedy"]
    assert not Model.objects.exists()


def test_a_version_in_use_is_not_deleted(operator, tmp_path):
    version = make_version(write_gguf(tmp_path))
    revision = live_deployment(version)
    refused = operator.delete(f"{VERSIONS}{version.pk}/")
    assert (refused.status_code, refused.json()["code"]) == (409, "version_in_use")
    revision.deployment.delete()
    assert operator.delete(f"{VERSIONS}{version.pk}/").status_code == 204


def test_models_can_be_described_and_deleted_when_empty(operator, tmp_path):
    version = make_version(write_gguf(tmp_path))
    url = f"/api/v1/models/{version.model_id}/"
    shown = operator.patch(url, {"description": "small", "name": "renamed"}).json()
    assert (shown["description"], shown["name"], shown["version_count"]) == ("small", "tiny", 1)
    assert operator.delete(url).status_code == 409
    assert operator.post("/api/v1/models/", {"name": "empty"}).status_code == 201


def test_a_viewer_reads_and_changes_nothing(tmp_path):
    version = make_version(write_gguf(tmp_path))
    viewer = client_of("view_model", "view_modelversion")
    assert viewer.get(VERSIONS).status_code == 200
    assert viewer.post(VERSIONS, {"model": "x", "path": "/tmp"}).status_code == 403
    assert viewer.delete(f"{VERSIONS}{version.pk}/").status_code == 403
    assert client_of("view_modelversion", staff=False).get(VERSIONS).status_code == 403
    assert APIClient().get(VERSIONS).status_code == 401


def test_the_schema_has_no_warnings():
    with GENERATOR_STATS.silence():
        schema = SchemaGenerator(patterns=urlpatterns).get_schema(request=None, public=True)
        problems = [*GENERATOR_STATS._warn_cache, *GENERATOR_STATS._error_cache]
        GENERATOR_STATS.reset()
    assert problems == []
    assert "/api/v1/model-versions/" in schema["paths"]
