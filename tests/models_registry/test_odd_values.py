"""Values that nobody should send are refused with words, by the API and by the pages."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from fleet.models import Server
from models_registry import pins, services
from models_registry.acting import actor_of
from models_registry.models import ModelVersion
from tests.models_registry.factories import make_version, write_gguf

pytestmark = pytest.mark.django_db
VERSIONS = "/api/v1/model-versions/"


@pytest.fixture
def operator(client: Client, admin: User, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(services, "_enqueue", lambda row: None)
    client.force_login(admin)
    client.raise_request_exception = False
    return client


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "urls": f"https://example.org/{'x' * 300}"},
        {"model": "m", "urls": [{"url": "https://example.org/x", "path": "é" * 200}]},
    ],
    ids=["long name", "name of many bytes"],
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
