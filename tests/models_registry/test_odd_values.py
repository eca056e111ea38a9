"""Values that nobody should send are refused with words, by the API and by the pages."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from fleet.models import Server
from models_registry import pins, services
from models_registry.acting import actor_of
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
