"""The switch for keeping a project's requests: off by default, checked, told to gateways, seen by members."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apikeys import services
from apikeys.errors import InvalidRequestLog
from apikeys.feed import feed_projects
from apikeys.models import Project
from tests.factories import make_project
from wire.feed import Guard, RequestLog

pytestmark = pytest.mark.django_db
MAIL = r"[\w.+-]+@[\w-]+\.[\w.]+"


def test_gateways_are_told_only_when_it_is_on() -> None:
    project = make_project()
    [told] = feed_projects(timezone.now())
    assert told.request_log is None
    services.update_project(project, request_log_days=7, request_log_redact=[MAIL, MAIL])
    [told] = feed_projects(timezone.now())
    assert told.request_log == RequestLog(retention_days=7, redact=(MAIL,))


@pytest.mark.parametrize(("field", "value"), [("days", 0), ("days", 366), ("redact", ["("]), ("redact", [""])])
def test_what_cannot_be_is_refused_with_what_to_do(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestLog) as caught:
        services.update_project(make_project(), **{f"request_log_{field}": value})
    assert "RE2" in caught.value.remedy


def test_the_api_and_the_page_switch_it_and_members_see_it(client: Client, admin: User) -> None:
    project = make_project(name="support")
    client.force_login(admin)
    url = f"/api/v1/projects/{project.pk}/"
    bad = client.patch(url, {"request_log_redact": ["("]}, "application/json")
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_request_log")
    on = client.patch(url, {"request_log_days": 3, "request_log_redact": [MAIL]}, "application/json").json()
    assert (on["request_log_days"], on["request_log_redact"]) == (3, [MAIL])
    page = reverse("admin:apikeys_project_change", args=[project.pk])
    form = {"name": "support", "active": "on", "priority": 1, "request_log_days": 9, "request_log_redact": f"{MAIL}\nx"}
    client.post(page, form)
    project.refresh_from_db()
    assert (project.request_log_days, project.request_log_redact) == (9, [MAIL, "x"])
    assert "is no pattern" in client.post(page, {**form, "request_log_redact": "("}).content.decode()
    member = User.objects.create_user("member", password="x", is_staff=True)
    services.set_member(project, member)
    client.force_login(member)
    assert "requests and answers for 9 days" in client.get(page).content.decode()
    client.force_login(admin)
    client.post(page, {**form, "request_log_days": ""})
    assert Project.objects.get(pk=project.pk).request_log_days is None


def test_a_guard_is_checked_and_told_to_gateways(client: Client, admin: User) -> None:
    project = make_project(name="support")
    client.force_login(admin)
    url = f"/api/v1/projects/{project.pk}/"
    for bad in ("ftp://x", "http://", "check", "http://a b/", "http://x:99999/"):
        refused = client.patch(url, {"guard_url": bad}, "application/json")
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_guard"), bad
    client.patch(url, {"guard_url": "https://guard.example/check", "guard_timeout_ms": 500}, "application/json")
    [told] = feed_projects(timezone.now())
    assert told.guard == Guard(url="https://guard.example/check", timeout_ms=500)
    page = reverse("admin:apikeys_project_change", args=[project.pk])
    form = {"name": "support", "active": "on", "priority": 1, "guard_url": "", "guard_timeout_ms": 2000}
    client.post(page, form)
    [told] = feed_projects(timezone.now())
    assert told.guard is None
