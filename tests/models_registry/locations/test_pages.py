"""Pages of the admin: locations, and where a version lies."""

from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse

from models_registry import services as models
from models_registry.location_models import StorageJob, StorageLocation, VersionCopy
from models_registry.locations import copies, jobs, places, services
from models_registry.models import ModelVersion
from tests.models_registry.factories import NOW, make_version, write_gguf, write_safetensors

pytestmark = pytest.mark.django_db


@pytest.fixture
def page(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root", password="x"))
    return client


@pytest.fixture
def version(tmp_path) -> ModelVersion:
    return make_version(write_gguf(tmp_path / "m"))


def location_url(name: str, *args) -> str:
    return reverse(f"admin:models_registry_storagelocation_{name}", args=args)


def version_url(name: str, *args) -> str:
    return reverse(f"admin:models_registry_modelversion_{name}", args=args)


def text_of(answer) -> str:
    assert answer.status_code == 200
    return " ".join(answer.content.decode().split())


def work() -> None:
    for job in StorageJob.objects.filter(state="queued"):
        assert jobs.finish_job(job.pk, NOW) == "done"


def test_a_location_is_added_shown_changed_and_removed(page, tmp_path):
    shown = text_of(page.get(location_url("changelist")))
    assert 'data-state="reachable"' in shown
    assert "&lt;" not in shown
    (tmp_path / "big").mkdir()
    form = {"name": "big", "kind": "store", "path": str(tmp_path / "big"), "quota_gb": "1.5"}
    shown = text_of(page.post(location_url("add"), form, follow=True))
    assert "big is added." in shown
    big = StorageLocation.objects.get(name="big")
    assert big.quota_bytes == 1_500_000_000
    change = {"name": "large", "path": str(tmp_path / "big"), "is_default": "on"}
    assert "large is changed." in text_of(page.post(location_url("change", big.pk), change, follow=True))
    big.refresh_from_db()
    assert (big.quota_bytes, big.is_default) == (None, True)
    assert "large is there." in text_of(page.post(location_url("look", big.pk), follow=True))
    assert "Remove large?" in text_of(page.get(location_url("remove", big.pk)))
    assert "large is removed." in text_of(page.post(location_url("remove", big.pk), follow=True))


def test_what_is_refused_is_said_on_the_page(page, tmp_path, version):
    form = {"name": "bad", "kind": "store", "path": str(tmp_path / "nothing")}
    assert "does not exist on the master" in text_of(page.post(location_url("add"), form))
    own = places.builtin()
    assert "built-in location stays" in text_of(page.post(location_url("remove", own.pk), follow=True))
    change = {"name": "default", "path": "/elsewhere", "read_only": "on", "is_default": "on"}
    assert "written to" in text_of(page.post(location_url("change", own.pk), change, follow=True))
    assert not StorageLocation.objects.get().read_only


def test_a_location_that_is_gone_says_so_and_can_be_marked(page, tmp_path, add):
    big = add("big")
    (tmp_path / "big" / places.MARKER).unlink()
    services.look_at(big, NOW)
    assert "is not mounted" in text_of(page.get(location_url("change", big.pk)))
    assert "unreachable" in text_of(page.get(location_url("changelist")))
    assert "lost for good" in text_of(page.get(location_url("mark", big.pk)))
    page.post(location_url("mark", big.pk))
    big.refresh_from_db()
    assert big.reachable


def test_a_version_shows_where_it_lies_and_is_copied_verified_moved(page, version, add):
    add("big")
    shown = text_of(page.get(version_url("change", version.pk)))
    assert "Where it lies" in shown
    assert 'data-test="copies"' in shown
    page.post(version_url("add_copy", version.pk), {"location": "big"})
    assert "waiting for a worker" in text_of(page.get(version_url("change", version.pk)))
    work()
    copy = copies.copies_of(version).get(location__name="big")
    assert "in our store" in text_of(page.get(version_url("copy", version.pk, copy.pk)))
    page.post(version_url("verify_copy", version.pk, copy.pk))
    work()
    add("fast")
    page.post(version_url("move_copy", version.pk, copy.pk), {"location": "fast"})
    work()
    names = [one.location.name for one in copies.copies_of(version)]
    assert names == ["default", "fast"]
    last = copies.copies_of(version).get(location__name="default")
    page.post(version_url("delete_copy", version.pk, last.pk))
    refused = page.post(version_url("delete_copy", version.pk, copies.copies_of(version).get().pk), follow=True)
    assert "only whole copy" in text_of(refused)


def test_everything_of_a_location_is_moved_with_one_button(page, version, add):
    add("big")
    own = places.builtin()
    assert "Move all of them" in text_of(page.get(location_url("change", own.pk)))
    page.post(location_url("move_all", own.pk), {"location": "big"})
    assert "On the way" in text_of(page.get(location_url("change", StorageLocation.objects.get(name="big").pk)))
    work()
    assert VersionCopy.objects.get().location.name == "big"


def test_work_is_ended_and_its_failure_is_shown(page, version, add):
    big = add("big")
    job = jobs.start_copy(version, big, now=NOW)
    assert "End the copy" in text_of(page.get(version_url("cancel_work", version.pk, job.pk)))
    page.post(version_url("cancel_work", version.pk, job.pk))
    job.refresh_from_db()
    assert job.state == "cancelled"
    job = jobs.start_copy(version, big, now=NOW)
    services.change_location(big, read_only=True)
    assert jobs.finish_job(job.pk, NOW) == "failed"
    assert "is read-only" in text_of(page.get(version_url("change", version.pk)))
    assert page.get(version_url("cancel_work", version.pk, 999)).status_code == 404
    assert page.get(version_url("copy", version.pk, 999)).status_code == 404


def test_a_folder_is_registered_in_place_by_the_import_page(page, tmp_path, add):
    write_safetensors(tmp_path / "nfs" / "llama")
    add("nfs", kind="shared")
    form = {"name": "tiny", "path": str(tmp_path / "nfs" / "llama"), "in_place": "on", "location": "nfs"}
    assert "has started" in text_of(page.post(version_url("add"), form, follow=True))
    row = ModelVersion.objects.get()
    models.finish_import(row.pk, NOW)
    shown = text_of(page.get(version_url("change", row.pk)))
    assert "in place" in shown
    copy = VersionCopy.objects.get()
    assert "folder of somebody else" in text_of(page.get(version_url("copy", row.pk, copy.pk)))


def test_a_viewer_sees_the_pages_and_has_no_buttons(client, version, add):
    big = add("big")
    user = User.objects.create_user("viewer", password="x", is_staff=True)
    user.groups.add(Group.objects.get(name="viewer"))
    client.force_login(user)
    copy = copies.copies_of(version).get()
    for url in (
        location_url("changelist"),
        location_url("change", big.pk),
        version_url("change", version.pk),
        version_url("copy", version.pk, copy.pk),
    ):
        shown = text_of(client.get(url))
        for mark in ("look", "remove", "copy-to", "verify", "delete-copy", "move-all", "location-form"):
            assert f'data-test="{mark}"' not in shown, (url, mark)
    for url in (
        location_url("look", big.pk),
        location_url("mark", big.pk),
        location_url("remove", big.pk),
        location_url("move_all", big.pk),
        location_url("add"),
        version_url("add_copy", version.pk),
        version_url("verify_copy", version.pk, copy.pk),
        version_url("move_copy", version.pk, copy.pk),
        version_url("delete_copy", version.pk, copy.pk),
    ):
        assert client.post(url, {"location": "big"}).status_code == 403, url
    assert Path(copy.path).exists()


def test_a_list_of_locations_costs_a_constant_number_of_queries(page, add, django_assert_max_num_queries):
    for name in "abcdef":
        add(name)
    page.get(location_url("changelist"))
    with django_assert_max_num_queries(14):
        page.get(location_url("changelist"))
