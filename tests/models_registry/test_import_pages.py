"""The page of imports: every source has a form, and each starts what the API would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from models_registry import removal, services
from models_registry.archive.services import export_version
from models_registry.fetching.policy import policy
from models_registry.models import ImportJob, ModelVersion
from tests.fakes.modelscope import FakeModelScope, serving_modelscope
from tests.models_registry.factories import gguf_bytes, make_version, write_gguf

pytestmark = pytest.mark.django_db(transaction=True)
SOURCES = ("urls", "s3", "modelscope", "files", "archive")


@pytest.fixture
def scope(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModelScope]:
    monkeypatch.setattr(services, "_enqueue", lambda row: None)
    settings.FETCH_FROM_LOOPBACK = True
    with serving_modelscope(FakeModelScope({"org/tiny": {"tiny.gguf": gguf_bytes()}})) as fake:
        settings.MODELSCOPE_ENDPOINT = fake.url
        yield fake


@pytest.fixture
def page(client: Client, admin: User) -> Client:
    client.force_login(admin)
    return client


def url(name: str, *args: object) -> str:
    return reverse(f"admin:models_registry_modelversion_{name}", args=args)


def test_every_source_has_a_form_and_a_link(page: Client) -> None:
    for source in (*SOURCES, "nonsense"):
        shown = page.get(url("add"), {"source": source}).content.decode()
        assert all(f'data-test="from-{name}"' in shown for name in ("hub", *SOURCES))
        assert 'aria-current="page"' in shown


def test_forms_start_imports_and_show_no_secret_again(page: Client, scope: FakeModelScope) -> None:
    place = f"{scope.url}/storage/org/tiny/tiny.gguf"
    asked = {"urls": place, "name": "a", "bearer_token": "my-secret", "headers": "X-Team: ours", "priority": 7}
    assert page.post(f"{url('add')}?source=urls", {**asked, "limit_mb": 2}).status_code == 302
    job = ImportJob.objects.get(version__model__name="a")
    assert (job.priority, job.limit_bytes_per_second) == (7, 2_000_000)
    assert page.post(f"{url('add')}?source=modelscope", {"address": "ms://org/tiny@master"}).status_code == 302
    refused = page.post(f"{url('add')}?source=urls", {**asked, "urls": "ftp://example.org/x"})
    assert "no http(s) URL" in refused.content.decode()
    assert "my-secret" not in refused.content.decode()
    wrong = page.post(f"{url('add')}?source=s3", {"address": "nonsense", "secret_key": "my-secret"})
    assert "s3://bucket/prefix" in wrong.content.decode()
    assert "my-secret" not in wrong.content.decode()


def test_an_import_is_put_first_and_the_schedule_set(page: Client, scope: FakeModelScope) -> None:
    page.post(f"{url('add')}?source=modelscope", {"address": "org/tiny", "name": "mine"})
    row = ModelVersion.objects.get()
    page.post(url("prioritize", row.pk), {"priority": 12})
    assert ImportJob.objects.get().priority == 12
    assert (
        "Give a whole number" in page.post(url("prioritize", row.pk), {"priority": "x"}, follow=True).content.decode()
    )
    assert page.get(url("prioritize", row.pk)).status_code == 403
    assert page.get(url("bandwidth")).status_code == 200
    page.post(url("bandwidth"), {"schedule": "else 5 MB/s", "zone": "Asia/Tokyo"})
    assert (policy().schedule, policy().zone) == ("else 5 MB/s", "Asia/Tokyo")
    shown = page.post(url("bandwidth"), {"schedule": "never", "zone": "UTC"}).content.decode()
    assert "no part of a schedule" in shown
    assert "else 5 MB/s (Asia/Tokyo)" in page.get(url("add")).content.decode()


def test_a_name_in_an_error_stays_as_it_is(page: Client) -> None:
    shown = page.post(f"{url('add')}?source=files", {"name": "x", "path": "models/x"}).content.decode()
    assert "models/x does not exist" in shown
    assert "Models/x" not in shown


def test_an_archive_goes_out_and_comes_back(page: Client, scope: FakeModelScope, tmp_path: Path) -> None:
    row = make_version(write_gguf(tmp_path), name="org/tiny", version="v3")
    assert f"/api/v1/model-versions/{row.pk}/export/" in page.get(url("change", row.pk)).content.decode()
    packed = export_version(row, tmp_path / "x.tar")
    removal.delete_version(row)
    upload = SimpleUploadedFile("x.tar", packed.read_bytes())
    assert page.post(f"{url('add')}?source=archive", {"upload": upload}).status_code == 302
    assert str(ModelVersion.objects.get()) == "org/tiny:v3"
    assert "Give either" in page.post(f"{url('add')}?source=archive", {"name": "x"}).content.decode()
    bad = SimpleUploadedFile("x.tar", packed.read_bytes()[:1500])
    assert "truncated" in page.post(f"{url('add')}?source=archive", {"upload": bad}).content.decode()


def test_who_may_not_import_sees_none_of_it(client: Client) -> None:
    client.force_login(User.objects.create_user("looks", password="x", is_staff=True))
    for name in ("add", "bandwidth"):
        assert client.get(url(name)).status_code == 403
