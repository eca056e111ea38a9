"""Addresses that are not of any one app."""

from __future__ import annotations

import datetime as dt
import io

import pytest
from celery.schedules import BaseSchedule
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from rest_framework.test import APIClient

from config import health
from config.celery import beat_schedule
from config.checks import schema_problem
from deployments.models import Leader

pytestmark = pytest.mark.django_db


def test_the_root_leads_to_the_admin(client: Client) -> None:
    assert client.get("/")["Location"] == "/admin/"


def test_a_process_that_answers_is_healthy(client: Client) -> None:
    assert client.get("/healthz").json()["status"] == "ok"


def test_a_master_without_a_controller_is_not_ready(client: Client) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "controller" in answer.json()["reasons"]


def test_a_master_whose_controller_just_ran_is_ready(client: Client, now: dt.datetime) -> None:
    Leader.objects.create(name="controller", holder="me", ticked_at=now)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["reasons"]) == (200, {})


def test_a_controller_that_stopped_is_a_reason(client: Client, now: dt.datetime) -> None:
    Leader.objects.create(name="controller", holder="me", ticked_at=now - dt.timedelta(minutes=1))
    assert "60 s ago" in client.get("/readyz").json()["reasons"]["controller"]


def test_a_database_with_every_migration_has_no_problem() -> None:
    assert schema_problem() is None


def test_a_missing_migration_is_said_in_one_sentence(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    MigrationRecorder(connection).record_unapplied("fleet", "0001_initial")
    problem = schema_problem()
    assert problem is not None
    assert "fleet.0001_initial" in problem
    assert "migrate" in problem
    monkeypatch.setattr(health, "_schema_good_at", None)
    assert client.get("/readyz").json()["reasons"]["database"] == problem


def test_a_database_of_a_newer_release_is_said_in_one_sentence() -> None:
    MigrationRecorder(connection).record_applied("fleet", "9999_of_the_future")
    problem = schema_problem()
    assert problem is not None
    assert "newer than this code" in problem


def test_an_unknown_address_of_the_api_is_a_problem_document(client: Client) -> None:
    answer = client.get("/api/v1/nonsense")
    assert (answer.status_code, answer["Content-Type"]) == (404, "application/problem+json")
    assert client.get("/nonsense")["Content-Type"].startswith("text/html")


def test_a_person_gets_a_token_and_reads_with_it(admin: User) -> None:
    client = APIClient()
    answer = client.post("/api/v1/auth/token", {"username": "root", "password": "correct horse battery"})
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {answer.json()['access']}")
    assert client.get("/api/v1/servers/").status_code == 200
    assert client.post("/api/v1/auth/token/refresh", {"refresh": answer.json()["refresh"]}).status_code == 200


def test_a_wrong_password_is_a_problem_document(admin: User) -> None:
    answer = APIClient().post("/api/v1/auth/token", {"username": "root", "password": "wrong"})
    assert (answer.status_code, answer["Content-Type"]) == (401, "application/problem+json")
    assert answer.json()["remedy"]


def test_a_wrong_token_is_a_problem_document() -> None:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION="Bearer nonsense")
    answer = client.get("/api/v1/servers/")
    assert (answer.status_code, answer.json()["code"]) == (401, "token_not_valid")


def test_the_schema_has_no_warnings() -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", stdout=io.StringIO())


def test_the_docs_load_nothing_from_elsewhere(client: Client) -> None:
    page = client.get("/api/v1/docs").content.decode()
    assert "swagger" in page
    assert "cdn" not in page


def test_the_gateways_api_is_documented_on_the_master(client: Client) -> None:
    document = client.get("/api/v1/gateway-schema").json()
    assert document["openapi"].startswith("3.1")
    assert "/v1/chat/completions" in document["paths"]
    page = client.get("/api/v1/gateway-docs").content.decode()
    assert "/api/v1/gateway-schema" in page.replace("\\u002D", "-")
    assert "supportedSubmitMethods" in page
    assert "cdn" not in page


def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "--check", "--dry-run", stdout=io.StringIO())


def test_periodic_tasks_of_every_app_are_known_tasks() -> None:
    from config.celery import app

    app.loader.import_default_modules()
    for name, entry in beat_schedule().items():
        assert entry["task"] in app.tasks, name
        assert isinstance(entry["schedule"], int | float | BaseSchedule), name


def test_what_is_not_there_or_not_allowed_leads_back(client: Client) -> None:
    client.force_login(User.objects.create_user("<ann>", password="x", is_staff=True))
    refused = client.get("/admin/models_registry/modelversion/add/")
    assert (refused.status_code, "&lt;ann&gt;, who may not do this" in refused.content.decode()) == (403, True)
    for answer in (refused, client.get("/admin/models_registry/modelversion/999/change/"), client.get("/nowhere")):
        assert 'href="/admin/"' in answer.content.decode()
