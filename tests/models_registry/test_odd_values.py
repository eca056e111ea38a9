"""Values that nobody should send are refused with words, by the API and by the pages."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from fleet.models import Server
from models_registry import pins, services
from models_registry.acting import actor_of
from models_registry.models import ImportJob, ModelVersion
from tests.models_registry.factories import make_version, write_gguf

pytestmark = pytest.mark.django_db
VERSIONS = "/api/v1/model-versions/"
DEEP = "[" * 100_000


@pytest.fixture
def operator(client: Client, admin: User, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(services, "_enqueue", lambda row: None)
    client.force_login(admin)
    client.raise_request_exception = False
    return client


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "urls": DEEP},
        {"model": "m", "urls": "https://example.org/x", "limit_bytes_per_second": 10**30},
        {"model": "m", "urls": f"https://example.org/{'x' * 300}"},
        {"model": "m", "urls": [{"url": "https://example.org/x", "path": "é" * 200}]},
    ],
    ids=["deep", "limit", "long name", "name of many bytes"],
)
def test_an_import_of_odd_values_is_refused(operator: Client, body: dict[str, Any]) -> None:
    answer = operator.post(VERSIONS, body, "application/json")
    assert answer.status_code == 400, answer.content
    assert not ModelVersion.objects.exists()


def test_an_upload_whose_name_no_disk_can_hold_is_refused(operator: Client, model_store) -> None:
    file = io.BytesIO(b"GGUF")
    file.name = "é" * 200 + ".gguf"
    answer = operator.post(VERSIONS, {"model": "m", "file": file})
    assert answer.status_code == 400, answer.content
    assert not list((model_store / "uploads").iterdir())


def test_an_archive_with_a_manifest_that_goes_too_deep_is_refused(operator: Client, tmp_path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "stokehold-manifest.json").write_text(
        '{"format": "stokehold-model", "format_version": 1, "facts": {"a": ' + "[" * 50_000 + "]" * 50_000 + "}}"
    )
    answer = operator.post(VERSIONS, {"path": str(folder)}, "application/json")
    assert answer.status_code == 422, answer.content


def test_a_limit_that_no_database_can_hold_is_refused(operator: Client) -> None:
    job = ImportJob(remote={"kind": "urls", "files": []}, queued_at=timezone.now())
    row = services.begin("m", None, job, source="")
    answer = operator.post(f"{VERSIONS}{row.pk}/limit/", {"bytes_per_second": 10**30}, "application/json")
    assert answer.status_code == 400, answer.content
    page = operator.post(
        "/admin/models_registry/modelversion/add/?source=urls",
        {"name": "n", "urls": "https://example.org/x", "limit_mb": "1e308"},
    )
    assert page.status_code == 200
    assert "less than or equal" in page.content.decode()


def test_a_schedule_beyond_all_numbers_is_refused(operator: Client) -> None:
    for rate in ("9" * 400, "0.0"):
        body = json.dumps({"schedule": f"else {rate} MB/s"})
        answer = operator.put("/api/v1/download-policy/", body, "application/json")
        assert answer.status_code == 400, answer.content
    assert operator.get("/api/v1/download-policy/").status_code == 200


def test_a_pin_of_a_server_that_is_gone_lets_no_other_pin_go(operator: Client, tmp_path) -> None:
    version = make_version(write_gguf(tmp_path / "m"))
    pins.pin(version, None)
    page = f"/admin/models_registry/modelversion/{version.pk}/unpin/"
    assert operator.post(page, {"server": "srv-gone"}).status_code == 404
    assert version.pins.count() == 1
    operator.post(page, {"server": ""})
    assert not version.pins.exists()
    assert not Server.objects.exists()


def test_who_imports_with_a_long_name_is_kept_as_far_as_it_goes() -> None:
    request = Request(APIRequestFactory().get("/"))
    request.user = User(username="u" * 150)
    request.auth = type("Key", (), {"name": "ci"})()
    assert len(actor_of(request)) <= 150
