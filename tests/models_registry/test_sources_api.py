"""Every source by the API and by the command: one is given, and each starts what its service starts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from pytest_django import Settings

from models_registry import services
from models_registry.fetching.policy import limit_at
from models_registry.models import ImportJob, ModelVersion, VersionState
from tests.fakes.modelscope import FakeModelScope, serving_modelscope
from tests.models_registry.factories import gguf_bytes
from tests.models_registry.workers import work

pytestmark = pytest.mark.django_db(transaction=True)
VERSIONS = "/api/v1/model-versions/"


@pytest.fixture
def scope(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModelScope]:
    monkeypatch.setattr(services, "_enqueue", lambda row: None)
    settings.FETCH_FROM_LOOPBACK = True
    with serving_modelscope(FakeModelScope({"org/tiny": {"tiny.gguf": gguf_bytes()}})) as fake:
        settings.MODELSCOPE_ENDPOINT = fake.url
        yield fake


@pytest.fixture
def ask(client: Client, admin: User) -> Any:
    client.force_login(admin)

    def post(body: dict[str, Any], path: str = VERSIONS) -> Any:
        return client.post(path, body, "application/json")

    return post


def file_url(scope: FakeModelScope) -> str:
    return f"{scope.url}/api/v1/models/org/tiny/repo?Revision=master&FilePath=tiny.gguf"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "no source is given"),
        ({"path": "/x", "urls": "https://example.org/x", "model": "m"}, "`path` and `urls` are given"),
        ({"modelscope": "ms://a/b", "s3": {"address": "s3://b"}, "repo": "a/b"}, "`repo` and `s3` and `modelscope`"),
    ],
)
def test_none_or_several_sources_are_one_clear_error(ask: Any, body: dict[str, Any], words: str) -> None:
    answer = ask(body)
    assert answer.status_code == 400
    assert words in answer.content.decode()
    assert "`s3`, `modelscope`" in answer.content.decode()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"urls": "https://169.254.169.254/latest", "model": "m"}, "source_refused"),
        ({"urls": ["ftp://example.org/x"], "model": "m"}, "bad_source"),
        ({"urls": "https://example.org/x"}, "invalid_name"),
        ({"urls": "https://example.org/x", "model": "m", "headers": {"Range": "x"}}, "bad_source"),
        ({"s3": {"address": "https://example.org"}}, "bad_source"),
        ({"s3": {"address": "s3://bucket/x", "endpoint": "http://[fe80::1]:9000"}}, "source_refused"),
        ({"modelscope": "ms://org/nothing"}, "source_gone"),
    ],
)
def test_what_cannot_be_fetched_is_said_at_once(
    scope: FakeModelScope, ask: Any, body: dict[str, Any], code: str
) -> None:
    answer = ask(body)
    assert answer.json()["code"] == code
    assert answer.json()["remedy"]
    assert not ModelVersion.objects.exists()


def test_urls_and_repositories_start_and_can_be_put_first(scope: FakeModelScope, ask: Any) -> None:
    urls = [{"url": file_url(scope), "path": "tiny.gguf"}]
    made = ask({"model": "a", "urls": urls, "bearer_token": "secret-of-mine", "priority": 3, "version": "v1"})
    assert (made.status_code, made.json()["fetching"]["priority"]) == (202, 3)
    assert "secret-of-mine" not in f"{made.content.decode()} {list(ImportJob.objects.values())}"
    again = ask({"modelscope": "ms://org/tiny@master", "limit_bytes_per_second": 1000})
    assert (again.json()["model"], again.json()["fetching"]["limit_bytes_per_second"]) == ("org/tiny", 1000)
    first = ask({"priority": 50}, f"{VERSIONS}{again.json()['id']}/prioritize/")
    assert first.json()["fetching"]["priority"] == 50
    assert ask({"priority": 101}, f"{VERSIONS}{again.json()['id']}/prioritize/").status_code == 400
    row = ModelVersion.objects.get(model__name="a")
    assert work(row) == VersionState.READY
    assert ask({"priority": 1}, f"{VERSIONS}{row.pk}/prioritize/").json()["code"] == "version_not_ready"


def test_the_schedule_is_set_and_shown(client: Client, admin: User) -> None:
    client.force_login(admin)
    url = "/api/v1/download-policy/"
    assert client.get(url).json() == {"schedule": "", "zone": "UTC", "bytes_per_second": None}
    body = {"schedule": "00:00-24:00 5 MB/s", "zone": "Europe/Berlin"}
    assert client.put(url, body, "application/json").json() == {**body, "bytes_per_second": 5e6}
    assert limit_at(dt.datetime.now(dt.UTC)) == 5e6
    bad = client.put(url, {"schedule": "sometimes"}, "application/json")
    assert (bad.status_code, bad.json()["code"]) == (400, "bad_schedule")


def test_the_command_takes_every_scheme(scope: FakeModelScope, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("download_model", "ms://org/tiny", no_wait=True)
    call_command("download_model", f"{scope.url}/storage/org/tiny/tiny.gguf", name="mine", no_wait=True, priority=9)
    assert capsys.readouterr().out.splitlines() == [
        "org/tiny:1: ms://org/tiny@master",
        f"mine:1: {scope.url}/storage/org/tiny/tiny.gguf",
    ]
    row = ModelVersion.objects.get(model__name="mine")
    assert row.job.priority == 9
    assert work(row) == VersionState.READY
    for source in (["s3://"], ["ms://org/nothing"], ["https://a.example/x", "ms://a/b"], ["ftp://x/y"]):
        with pytest.raises(CommandError):
            call_command("download_model", *source, no_wait=True)
    with pytest.raises(CommandError, match="Give --name"):
        call_command("download_model", "https://huggingface.co/org/tiny", no_wait=True)
