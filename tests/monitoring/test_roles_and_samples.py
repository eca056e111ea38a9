"""Roles, samples, the overview, and what the audit log never holds."""

from __future__ import annotations

import datetime as dt

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import Group, User
from rest_framework.test import APIClient

from monitoring import samples
from monitoring.models import LoadSample
from monitoring.roles import ensure_roles
from templates import words
from tests.factories import make_key, make_server

pytestmark = pytest.mark.django_db


def member_of(group: str) -> User:
    user = User.objects.create_user(group, password="x", is_staff=True)
    user.groups.add(Group.objects.get(name=group))
    return User.objects.get(pk=user.pk)


def test_a_viewer_sees_and_changes_nothing() -> None:
    user = member_of("viewer")
    assert user.has_perm("deployments.view_deployment")
    assert not user.has_perm("deployments.change_deployment")
    assert not user.has_perm("auth.view_user")


def test_an_operator_changes_the_fleet_but_not_people() -> None:
    user = member_of("operator")
    assert user.has_perm("deployments.add_deployment")
    assert user.has_perm("fleet.change_server")
    assert not user.has_perm("auth.change_user")


def test_an_admin_manages_people() -> None:
    assert member_of("admin").has_perm("auth.change_user")


def test_permissions_that_were_added_to_a_group_stay() -> None:
    group = Group.objects.get(name="viewer")
    from django.contrib.auth.models import Permission

    group.permissions.add(Permission.objects.get(codename="add_deployment"))
    ensure_roles()
    assert group.permissions.filter(codename="add_deployment").exists()


def test_one_sample_a_server_and_minute(now: dt.datetime) -> None:
    make_server(now=now)
    make_server(online=False)
    minute = now.replace(second=1, microsecond=0)
    assert samples.take_samples(minute) == 1
    samples.take_samples(minute + dt.timedelta(seconds=30))
    assert LoadSample.objects.count() == 1


def test_an_old_report_is_not_sampled(now: dt.datetime) -> None:
    make_server(now=now - dt.timedelta(minutes=5))
    assert samples.take_samples(now) == 0


def test_old_samples_are_deleted(now: dt.datetime) -> None:
    server = make_server(now=now)
    for age in (1, 20):
        LoadSample.objects.create(
            server=server, at=now - dt.timedelta(days=age), cpu_percent=1, memory_percent=1, disk_percent=1
        )
    assert samples.drop_old(now) == 1


def test_the_overview_counts(api: APIClient) -> None:
    make_server()
    found = api.get("/api/v1/overview").json()
    assert found["servers_online"] == 1
    assert found["controller_age_s"] is None
    assert any("controller" in alert["message"] for alert in found["alerts"])


def test_the_overview_wants_the_fleet_permission() -> None:
    client = APIClient()
    client.force_authenticate(User.objects.create_user("member", password="x", is_staff=True))
    assert client.get("/api/v1/overview").status_code == 403


def test_the_audit_log_has_changes_but_no_secret() -> None:
    key, text = make_key(name="bot")
    entries = list(LogEntry.objects.get_for_object(key))
    assert entries
    written = str([entry.changes for entry in entries])
    assert key.secret_hash not in written
    assert text not in written


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59, "59 s"), (61, "1 min"), (3700, "1 h 1 min"), (90000, "1 d 1 h")]
)
def test_durations_in_words(seconds: int, said: str) -> None:
    assert words.for_duration(seconds) == said


def test_sizes_and_counts_in_words() -> None:
    assert words.in_bytes(1536 * 1024) == "1.5 MiB"
    assert words.in_short(12_345) == "12.3k"
    assert words.in_short(0) == "0"
