"""REST API of projects, keys and usage; who may do what."""

import csv
import datetime as dt
import io

import pytest
from django.utils import timezone
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from rest_framework.test import APIClient

from apikeys import services, usage
from apikeys.models import ApiKey, Project, ProjectRole
from tests.apikeys.factories import client_of, make_admin, make_batch, make_key, make_project, make_row, make_user
from tests.apikeys.urls import urlpatterns

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.apikeys.urls")]
PROJECTS, KEYS, USAGE = "/api/v1/projects/", "/api/v1/keys/", "/api/v1/usage/"


@pytest.fixture
def admin() -> APIClient:
    return client_of(make_admin())


def member_of(project: Project, role: str = ProjectRole.MEMBER) -> APIClient:
    user = make_user()
    services.set_member(project, user, role)
    return client_of(user)


# ------------------------------------------------------------------------------------------------ projects


def test_a_project_is_made_changed_and_deleted(admin):
    made = admin.post(PROJECTS, {"name": "team", "tokens_per_day": 1000})
    assert made.status_code == 201
    url = f"{PROJECTS}{made.json()['id']}/"
    changed = admin.patch(url, {"active": False, "tokens_per_day": None}).json()
    assert (changed["name"], changed["active"], changed["tokens_per_day"]) == ("team", False, None)
    assert admin.delete(url).status_code == 204


def test_a_taken_name_and_a_bad_limit_are_problem_documents(admin):
    make_project("team")
    taken = admin.post(PROJECTS, {"name": "team"})
    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
    bad = admin.post(PROJECTS, {"name": "x", "requests_per_minute": 0})
    assert (bad.status_code, bad.headers["Content-Type"]) == (400, "application/problem+json")
    assert "requests_per_minute" in bad.json()["errors"]


def test_a_member_sees_only_the_own_projects_and_changes_none():
    mine, other = make_project("mine"), make_project("other")
    member = member_of(mine, ProjectRole.OWNER)
    assert [row["name"] for row in member.get(PROJECTS).json()["results"]] == ["mine"]
    assert member.get(f"{PROJECTS}{other.pk}/").status_code == 404
    assert member.patch(f"{PROJECTS}{mine.pk}/", {"tokens_per_day": None}).status_code == 403
    assert member.post(PROJECTS, {"name": "new"}).status_code == 403
    assert member.delete(f"{PROJECTS}{mine.pk}/").status_code == 403


def test_owners_choose_the_members():
    project = make_project()
    owner, user = member_of(project, ProjectRole.OWNER), make_user()
    url = f"{PROJECTS}{project.pk}/members/"
    assert owner.post(url, {"user": user.username, "role": "member"}).status_code == 200
    assert {row["user"] for row in owner.get(url).json()} >= {user.username}
    assert client_of(user).get(url).status_code == 200
    assert client_of(user).post(url, {"user": user.username, "role": "owner"}).status_code == 403
    assert client_of(user).delete(f"{url}{user.pk}/").status_code == 403
    assert owner.post(url, {"user": "nobody"}).status_code == 400
    assert owner.delete(f"{url}{user.pk}/").status_code == 204
    assert owner.delete(f"{url}{user.pk}/").status_code == 404
    assert client_of(user).get(url).status_code == 404


# ------------------------------------------------------------------------------------------------ keys


def test_a_new_key_is_in_the_answer_once_with_examples(admin):
    project = make_project()
    answer = admin.post(KEYS, {"project": str(project.pk), "name": "app", "allowed_models": ["chat"]})
    assert answer.status_code == 201
    made = answer.json()
    assert services.hash_key(made["key"]) == ApiKey.objects.get().secret_hash
    assert made["key"] in made["curl"]
    assert made["key"] in made["python"]
    shown = admin.get(answer.headers["Location"])
    assert shown.json()["prefix"] == made["prefix"]
    assert made["key"] not in shown.content.decode()
    assert ApiKey.objects.get().secret_hash not in shown.content.decode()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"tokens_per_minute": 0},
        {"expires_at": "2001-01-01T00:00:00Z"},
        {"allowed_models": "chat"},
        {"allowed_models": [""]},
        {"project": "00000000-0000-0000-0000-000000000000"},
    ],
)
def test_a_bad_key_is_a_problem_document(admin, fields):
    answer = admin.post(KEYS, {"project": str(make_project().pk), "name": "app"} | fields)
    assert answer.status_code == 400
    assert answer.json()["remedy"]
    assert not ApiKey.objects.exists()


def test_owners_issue_change_and_revoke_keys_of_their_project_only():
    project = make_project()
    owner, elsewhere = member_of(project, ProjectRole.OWNER), make_key()
    made = owner.post(KEYS, {"project": str(project.pk), "name": "app"}).json()
    url = f"{KEYS}{made['id']}/"
    changed = owner.patch(url, {"name": "renamed", "project": str(elsewhere.project_id)}).json()
    assert (changed["name"], changed["project"]) == ("renamed", str(project.pk))
    assert owner.post(f"{url}revoke/").json()["revoked_at"]
    assert owner.patch(url, {"name": "again"}).status_code == 409
    assert owner.post(KEYS, {"project": str(elsewhere.project_id), "name": "x"}).status_code == 403
    assert owner.post(f"{KEYS}{elsewhere.pk}/revoke/").status_code == 404
    assert owner.delete(url).status_code == 405


def test_members_see_keys_and_change_nothing():
    key = make_key()
    member = member_of(key.project)
    assert [row["id"] for row in member.get(KEYS).json()["results"]] == [key.pk]
    assert member.post(KEYS, {"project": str(key.project_id), "name": "x"}).status_code == 403
    assert member.patch(f"{KEYS}{key.pk}/", {"name": "x"}).status_code == 403
    assert member.post(f"{KEYS}{key.pk}/revoke/").status_code == 403


def test_strangers_see_nothing():
    key = make_key()
    stranger = client_of(make_user())
    assert stranger.get(KEYS).json()["count"] == 0
    assert stranger.get(f"{KEYS}{key.pk}/").status_code == 404
    assert stranger.get(f"{USAGE}?group_by=key").json()["count"] == 0
    for url in (PROJECTS, KEYS, USAGE):
        assert APIClient().get(url).status_code == 401


def test_a_viewer_of_the_staff_sees_all_and_changes_nothing():
    key = make_key()
    viewer = client_of(make_user("view_project", "view_apikey", "view_usagehour", staff=True))
    assert viewer.get(f"{KEYS}{key.pk}/").status_code == 200
    assert viewer.post(f"{KEYS}{key.pk}/revoke/").status_code == 403
    assert viewer.post(PROJECTS, {"name": "x"}).status_code == 403
    assert viewer.post(f"{PROJECTS}{key.project_id}/members/", {"user": "x"}).status_code == 403


def test_keys_are_filtered_and_searched(admin):
    key, revoked = make_key(name="alpha"), make_key(name="beta")
    services.revoke_key(revoked, timezone.now())

    def found(query: str) -> list[str]:
        return [row["id"] for row in admin.get(f"{KEYS}?{query}").json()["results"]]

    assert found("search=alp") == found("revoked=false") == found(f"project={key.project_id}") == [key.pk]
    assert found("revoked=true") == [revoked.pk]
    assert found("ordering=name") == [key.pk, revoked.pk]


def test_lists_cost_a_constant_number_of_queries(admin, django_assert_max_num_queries):
    def queries(url: str) -> int:
        with django_assert_max_num_queries(6) as captured:
            assert admin.get(url).status_code == 200
        return len(captured)

    def grow(count: int) -> None:
        for _ in range(count):
            key = make_key()
            usage.record_batch(make_batch(make_row(key, at=timezone.now())), timezone.now())

    urls = (PROJECTS, KEYS, f"{USAGE}?group_by=project,key,day")
    grow(1)
    for url in urls:
        queries(url)  # permissions are read once a user
    few = [queries(url) for url in urls]
    grow(10)
    assert [queries(url) for url in urls] == few


# ------------------------------------------------------------------------------------------------ usage


@pytest.fixture
def used() -> ApiKey:
    key = make_key(make_project("team"), name="app")
    now = timezone.now()
    usage.record_batch(
        make_batch(
            make_row(key, at=now),
            make_row(key, at=now, model="other", status=500),
            make_row(key, at=now - dt.timedelta(days=60)),
            make_row(make_key(), at=now),
        ),
        now,
    )
    return key


def test_usage_is_summed_filtered_and_grouped(admin, used):
    def sums(query: str) -> list[dict]:
        return admin.get(f"{USAGE}?{query}").json()["results"]

    (total,) = sums("group_by=")
    assert (total["requests"], total["errors"], total["total_tokens"]) == (3, 1, 45)  # of the last 30 days
    (total,) = sums(f"group_by=&project={used.project_id}&model=chat")
    assert total["requests"] == 1
    since = f"{timezone.now() - dt.timedelta(days=90):%Y-%m-%dT%H:%M:%SZ}"
    (total,) = sums(f"group_by=key&key={used.pk}&since={since}")
    assert (total["key"], total["requests"]) == ("app", 3)
    assert {row["model"] for row in sums("group_by=model,day")} == {"chat", "other"}


@pytest.mark.parametrize(
    "query",
    [
        "group_by=colour",
        "since=yesterday",
        "project=1",
        "key=muchtoolong",
        "since=2026-02-02T00:00:00Z&until=2026-01-01T00:00:00Z",
    ],
)
def test_a_bad_question_is_a_problem_document(admin, query):
    answer = admin.get(f"{USAGE}?{query}")
    assert answer.status_code == 400
    assert answer.json()["remedy"]


def test_members_see_the_usage_of_their_project_only(used):
    (total,) = member_of(used.project).get(f"{USAGE}?group_by=").json()["results"]
    assert total["requests"] == 2
    foreign = make_project()
    assert member_of(foreign).get(f"{USAGE}?group_by=key&project={used.project_id}").json()["count"] == 0


def test_usage_is_exported_as_csv(used):
    answer = member_of(used.project).get(f"{USAGE}export?group_by=key,model")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert "usage.csv" in answer.headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
    assert {(row["key"], row["model"], row["total_tokens"]) for row in rows} == {
        ("app", "chat", "15"),
        ("app", "other", "15"),
    }


def test_the_schema_has_no_warnings():
    with GENERATOR_STATS.silence():
        schema = SchemaGenerator(patterns=urlpatterns).get_schema(request=None, public=True)
        problems = [*GENERATOR_STATS._warn_cache, *GENERATOR_STATS._error_cache]
        GENERATOR_STATS.reset()
    assert problems == []
    assert "/api/v1/usage/export" in schema["paths"]


def test_a_period_that_is_too_long_is_refused_with_what_to_do(admin):
    long = admin.get(USAGE, {"since": "2020-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"})
    assert (long.status_code, long.json()["code"]) == (400, "invalid_period")
    assert "in parts" in long.json()["detail"]
