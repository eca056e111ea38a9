"""REST API of locations, copies and the work on them."""

import pytest
from rest_framework.test import APIClient

from models_registry.location_models import StorageJob, StorageLocation
from models_registry.locations import jobs
from models_registry.models import ModelVersion
from tests.models_registry.factories import NOW, make_version, write_gguf, write_safetensors
from tests.models_registry.test_api import client_of

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.models_registry.urls")]
LOCATIONS = "/api/v1/storage-locations/"
JOBS = "/api/v1/storage-jobs/"


@pytest.fixture
def operator() -> APIClient:
    names = ("modelversion", "storagelocation", "versioncopy", "storagejob")
    return client_of(*(f"{action}_{name}" for action in ("view", "add", "change", "delete") for name in names))


def copies_url(version: ModelVersion) -> str:
    return f"/api/v1/model-versions/{version.pk}/copies/"


def work(answer) -> dict:
    assert answer.status_code == 202, answer.json()
    jobs.finish_job(answer.json()["id"], NOW)
    return answer.json()


def test_the_built_in_location_is_listed_before_anything_was_imported(operator, model_store):
    shown = operator.get(LOCATIONS).json()["results"]
    assert [(row["name"], row["path"], row["builtin"], row["is_default"]) for row in shown] == [
        ("default", str(model_store), True, True)
    ]


def test_a_location_is_added_changed_looked_at_and_removed(operator, tmp_path):
    (tmp_path / "big").mkdir()
    answer = operator.post(LOCATIONS, {"name": "big", "path": str(tmp_path / "big"), "quota_bytes": 10**12})
    assert answer.status_code == 201, answer.json()
    url = f"{LOCATIONS}{answer.json()['id']}/"
    assert answer.json()["reachable"]
    changed = operator.patch(url, {"quota_bytes": None, "is_default": True, "server_path": "/mnt/x"})
    assert changed.status_code == 200, changed.json()
    assert (changed.json()["quota_bytes"], changed.json()["is_default"]) == (None, True)
    assert operator.post(f"{url}look/").json()["free_bytes"] > 0
    assert operator.post(f"{url}mark/").json()["reachable"]
    assert operator.patch(url, {"kind": "shared"}).json()["kind"] == "store"
    assert operator.delete(url).status_code == 204
    assert StorageLocation.objects.get().is_default


def test_what_is_wrong_with_a_location_is_a_problem_with_a_remedy(operator, tmp_path):
    answer = operator.post(LOCATIONS, {"name": "bad", "path": str(tmp_path / "nothing")})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_location")
    assert answer.json()["remedy"]
    default = operator.get(LOCATIONS).json()["results"][0]["id"]
    assert operator.delete(f"{LOCATIONS}{default}/").json()["code"] == "bad_location"


def test_a_version_is_copied_verified_moved_and_a_copy_deleted(operator, tmp_path, add):
    version = make_version(write_gguf(tmp_path / "m"))
    add("big"), add("fast")
    work(operator.post(copies_url(version), {"location": "big"}))
    shown = {row["location"]: row for row in operator.get(copies_url(version)).json()["results"]}
    assert {name: row["state"] for name, row in shown.items()} == {"big": "whole", "default": "whole"}
    big = f"{copies_url(version)}{shown['big']['id']}/"
    assert work(operator.post(f"{big}verify/"))["kind"] == "verify"
    job = work(operator.post(f"{big}move/", {"location": "fast"}))
    assert (job["source"], job["location"], job["model"]) == ("big", "fast", "tiny:1")
    assert operator.get(f"{JOBS}{job['id']}/").json()["state"] == "done"
    default = f"{copies_url(version)}{shown['default']['id']}/"
    assert operator.delete(default).status_code == 204
    last = operator.get(copies_url(version)).json()["results"]
    refused = operator.delete(f"{copies_url(version)}{last[0]['id']}/")
    assert (refused.status_code, refused.json()["code"]) == (409, "last_copy")
    assert operator.post(copies_url(version), {"location": "nowhere"}).status_code == 400
    assert operator.get("/api/v1/model-versions/999/copies/").status_code == 404


def test_everything_is_moved_to_a_new_disk_at_once(operator, tmp_path, add):
    first = make_version(write_gguf(tmp_path / "m"))
    second = make_version(write_safetensors(tmp_path / "n"), name="other")
    add("new")
    default = operator.get(f"{LOCATIONS}?name=default").json()["results"][0]["id"]
    answer = operator.post(f"{LOCATIONS}{default}/move-all/", {"location": "new"})
    assert answer.status_code == 202
    for job in answer.json():
        assert jobs.finish_job(job["id"], NOW) == "done"
    for version in (first, second):
        assert [copy["location"] for copy in operator.get(copies_url(version)).json()["results"]] == ["new"]


def test_work_is_cancelled(operator, tmp_path, add):
    version = make_version(write_gguf(tmp_path / "m"))
    add("big")
    job = operator.post(copies_url(version), {"location": "big"}).json()
    assert operator.post(f"{JOBS}{job['id']}/cancel/").json()["state"] == "cancelled"
    assert operator.post(f"{JOBS}{job['id']}/cancel/").status_code == 409
    assert operator.get(f"{JOBS}?state=cancelled").json()["count"] == 1


def test_an_import_says_where_to_and_whether_in_place(operator, tmp_path, add, django_capture_on_commit_callbacks):
    write_safetensors(tmp_path / "nfs" / "llama")
    add("nfs", kind="shared")
    body = {"model": "tiny", "path": str(tmp_path / "nfs" / "llama"), "location": "nfs", "in_place": True}
    with django_capture_on_commit_callbacks(execute=True):
        answer = operator.post("/api/v1/model-versions/", body)
    assert answer.status_code == 202, answer.json()
    version = ModelVersion.objects.get()
    copy = operator.get(copies_url(version)).json()["results"][0]
    assert (version.state, copy["in_place"], copy["path"]) == ("ready", True, str(tmp_path / "nfs" / "llama"))
    body = {"repo": "org/tiny", "in_place": True}
    assert operator.post("/api/v1/model-versions/", body).status_code == 400


def test_a_viewer_looks_and_changes_nothing(tmp_path, add):
    version = make_version(write_gguf(tmp_path / "m"))
    add("big")
    viewer = client_of("view_storagelocation", "view_versioncopy", "view_storagejob")
    for url in (LOCATIONS, copies_url(version), JOBS):
        assert viewer.get(url).status_code == 200
    assert viewer.post(copies_url(version), {"location": "big"}).status_code == 403
    assert viewer.post(LOCATIONS, {}).status_code == 403
    assert not StorageJob.objects.exists()


def test_a_list_of_copies_costs_a_constant_number_of_queries(operator, tmp_path, add, django_assert_max_num_queries):
    version = make_version(write_gguf(tmp_path / "m"))
    for name in ("a", "b", "c"):
        work(operator.post(copies_url(version), {"location": add(name).name}))
    with django_assert_max_num_queries(6):
        assert operator.get(copies_url(version)).json()["count"] == 4
    with django_assert_max_num_queries(6):
        assert operator.get(JOBS).json()["count"] == 3
