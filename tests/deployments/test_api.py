"""REST of deployments: what it answers, and what a wrong request gets."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import msgspec
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from deployments import logs
from deployments.models import Deployment, Event, Instance, Phase, Revision
from models_registry.models import VersionState
from tests.deployments.agents import CRASH
from tests.factories import make_deployment, make_instance, make_model_version, make_server

pytestmark = pytest.mark.django_db
ROOT = "/api/v1/deployments/"
NOW = timezone.now()


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """The problem document of a refused request, its shape checked."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    body = response.json()
    assert {"type", "title", "status", "code", "detail", "remedy"} <= body.keys()
    assert (body["code"], body["status"]) == (code, status)
    assert body["detail"]
    assert body["remedy"]
    return body


def path(deployment: Deployment, verb: str = "") -> str:
    return f"{ROOT}{deployment.pk}/{verb}"


# ------------------------------------------------------------------------------------------------ make and read


def test_a_deployment_is_made_and_read(api: APIClient) -> None:
    version = make_model_version(name="smol")
    made = api.post(ROOT, {"name": "chat", "model_version": version.pk, "parameters": {"parallel": 2}}, format="json")
    assert made.status_code == 201, made.content
    assert made["ETag"] == '"1"'
    body = api.get(f"{ROOT}{made.json()['id']}/").json()
    assert body["status"] == {
        "state": "starting",
        "ready": 0,
        "desired": 1,
        "reason": "waiting for the controller to place it",
    }
    assert body["revision"]["parameters"] == {"parallel": 2}
    assert body["revision"]["model"] == str(version)
    assert body["revision"]["created_by"] == "root"


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"name": "no spaces"}, "invalid_spec", "name"),
        ({"replicas": -1}, "invalid", "replicas"),
        ({"replicas": 1001}, "invalid", "replicas"),
        ({"model_version": 0}, "invalid", "model_version"),
        ({"runtime": "podman"}, "invalid", "runtime"),
        ({"engine": "vlm"}, "invalid_spec", "engine"),
        ({"image": "a b"}, "invalid_spec", "image"),
        ({"parameters": []}, "invalid", "parameters"),
        ({"parameters": {"parallel": 0}}, "bad_parameters", "parameters"),
        ({"placement": {"gpus": 100}}, "invalid_spec", "placement"),
    ],
)
def test_a_wrong_field_is_named(api: APIClient, fields: dict, code: str, field: str) -> None:
    body = {"name": "chat", "model_version": make_model_version().pk} | fields
    assert field in problem(api.post(ROOT, body, format="json"), 400, code)["errors"]
    assert not Deployment.objects.exists()


def test_a_missing_field_and_malformed_json_are_told(api: APIClient) -> None:
    assert set(problem(api.post(ROOT, {}, format="json"), 400, "invalid")["errors"]) == {"name"}
    problem(api.post(ROOT, {"name": "chat"}, format="json"), 400, "invalid_spec")
    problem(api.post(ROOT, "{", content_type="application/json"), 400, "parse_error")


def test_a_name_in_use_and_a_model_not_ready_are_conflicts(api: APIClient) -> None:
    make_deployment(name="chat")
    version = make_model_version()
    problem(api.post(ROOT, {"name": "chat", "model_version": version.pk}, format="json"), 409, "name_in_use")
    late = make_model_version(state=VersionState.IMPORTING)
    problem(api.post(ROOT, {"name": "new", "model_version": late.pk}, format="json"), 409, "model_not_ready")


def test_what_is_not_there_is_not_found(api: APIClient) -> None:
    problem(api.get(f"{ROOT}99/"), 404, "not_found")
    problem(api.get(f"{ROOT}chat/"), 404, "not_found")
    deleted = make_deployment(deleted_at=NOW)
    problem(api.get(path(deleted)), 404, "not_found")


def test_lists_filter_search_and_sort(api: APIClient) -> None:
    for name, running in (("alpha", True), ("beta", True), ("gamma", False)):
        make_deployment(name=name, running=running)

    def names(query: str) -> list[str]:
        return [row["name"] for row in api.get(f"{ROOT}?{query}").json()["results"]]

    assert names("") == ["alpha", "beta", "gamma"]
    assert names("name=beta") == ["beta"]
    assert names("name__contains=a&running=false") == ["gamma"]
    assert names("search=alph") == ["alpha"]
    assert names("ordering=-name") == ["gamma", "beta", "alpha"]
    assert api.get(f"{ROOT}?page_size=2").json()["count"] == 3


@pytest.mark.parametrize("what", ["deployments", "revisions", "instances", "events"])
def test_a_list_takes_the_same_queries_however_long(api: APIClient, what: str) -> None:
    def grow(count: int) -> None:
        for _ in range(count):
            instance = make_instance(server=make_server(now=NOW), now=NOW)
            Event.objects.create(at=NOW, kind="x", message="x", deployment=instance.deployment, instance=instance)

    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert api.get(f"/api/v1/{what}/").status_code == 200
        return len(queries)

    grow(1)
    before = cost()
    grow(10)
    assert cost() == before <= 3


# ------------------------------------------------------------------------------------------------ change


def test_a_change_wants_the_etag_it_was_read_with(api: APIClient) -> None:
    deployment = make_deployment()
    problem(api.patch(path(deployment), {"replicas": 2}, format="json"), 428, "precondition_required")
    problem(
        api.patch(path(deployment), {"replicas": 2}, format="json", headers={"if-match": "x"}), 400, "invalid_query"
    )
    changed = api.patch(path(deployment), {"replicas": 2}, format="json", headers={"if-match": '"1"'})
    assert changed.status_code == 200
    assert changed["ETag"] == '"2"'
    stale = api.patch(path(deployment), {"replicas": 3}, format="json", headers={"if-match": '"1"'})
    assert problem(stale, 412, "version_conflict")["current_version"] == 2
    forced = api.patch(path(deployment), {"replicas": 3}, format="json", headers={"if-match": "*"})
    assert forced.json()["replicas"] == 3


def test_a_field_that_is_unknown_or_fixed_is_refused_and_not_passed_over(api: APIClient) -> None:
    deployment = make_deployment(name="chat")

    def change(body: dict) -> Any:
        return api.patch(path(deployment), body, format="json", headers={"if-match": "*"})

    assert "parametres" in problem(change({"parametres": {}, "replicas": 2}), 400, "invalid")["errors"]
    assert "name" in problem(change({"name": "other"}), 400, "invalid_spec")["errors"]
    assert (
        "replica"
        in problem(api.post(path(deployment, "scale/"), {"replica": 2, "replicas": 2}), 400, "invalid")["errors"]
    )
    deployment.refresh_from_db()
    assert deployment.version == 1


def test_what_was_read_can_be_sent_back(api: APIClient) -> None:
    deployment = make_deployment(name="chat", placement={"gpus": 0})
    read = api.get(path(deployment))
    body = {key: read.json()[key] for key in ("id", "name", "replicas", "version", "status")}
    assert api.patch(path(deployment), body, format="json", headers={"if-match": read["ETag"]}).status_code == 200


def test_a_changed_spec_makes_a_revision(api: APIClient) -> None:
    deployment = make_deployment()
    body = {"parameters": {"parallel": 3}}
    changed = api.patch(path(deployment), body, format="json", headers={"if-match": '"1"'}).json()
    assert changed["revision"]["number"] == 2
    listed = api.get(f"/api/v1/revisions/?deployment={deployment.pk}").json()
    assert [row["number"] for row in listed["results"]] == [2, 1]


def test_a_deletion_wants_the_etag_too(api: APIClient) -> None:
    deployment = make_deployment()
    problem(api.delete(path(deployment)), 428, "precondition_required")
    problem(api.delete(path(deployment), headers={"if-match": '"7"'}), 412, "version_conflict")
    assert api.delete(path(deployment), headers={"if-match": 'W/"1"'}).status_code == 204
    problem(api.get(path(deployment)), 404, "not_found")


def test_verbs_take_an_etag_and_do_without(api: APIClient) -> None:
    deployment = make_deployment(replicas=2)
    assert api.post(path(deployment, "stop/")).json()["status"]["state"] == "stopped"
    problem(api.post(path(deployment, "start/"), headers={"if-match": '"1"'}), 412, "version_conflict")
    assert api.post(path(deployment, "start/"), headers={"if-match": '"2"'}).json()["running"] is True
    scaled = api.post(path(deployment, "scale/"), {"replicas": 5}, format="json")
    assert (scaled.json()["replicas"], scaled["ETag"]) == (5, '"4"')
    problem(api.post(path(deployment, "scale/"), {"replicas": -1}, format="json"), 400, "invalid")
    problem(api.post(path(deployment, "rollback/"), {"revision": 9}, format="json"), 404, "unknown_revision")
    assert api.post(path(deployment, "rollback/"), {"revision": 1}, format="json").status_code == 200
    assert Revision.objects.count() == 1
    restarted = api.post(path(deployment, "restart/"), headers={"if-match": '"4"'})
    assert (restarted.json()["revision"]["number"], restarted["ETag"]) == (2, '"5"')
    problem(api.post(path(deployment, "restart/"), headers={"if-match": '"4"'}), 412, "version_conflict")
    api.post(path(deployment, "stop/"))
    problem(api.post(path(deployment, "restart/")), 409, "not_running")


def test_who_may_only_look_changes_nothing(viewer_api: APIClient, anonymous_api: APIClient) -> None:
    deployment = make_deployment()
    assert viewer_api.get(path(deployment)).status_code == 200
    problem(viewer_api.post(path(deployment, "stop/")), 403, "permission_denied")
    problem(viewer_api.delete(path(deployment), headers={"if-match": "*"}), 403, "permission_denied")
    problem(viewer_api.post(ROOT, {}, format="json"), 403, "permission_denied")
    assert anonymous_api.get(path(deployment)).status_code == 401
    deployment.refresh_from_db()
    assert deployment.version == 1


# ------------------------------------------------------------------------------------------------ preview


def test_a_preview_changes_nothing_and_shows_the_arithmetic(api: APIClient) -> None:
    make_server(name="a", now=timezone.now())
    version = make_model_version()
    with CaptureQueriesContext(connection) as queries:
        found = api.post(f"{ROOT}preview/", {"model_version": version.pk, "replicas": 2}, format="json")
    assert found.status_code == 200, found.content
    assert not [query for query in queries if query["sql"].split()[0] in ("INSERT", "UPDATE", "DELETE")]
    body = found.json()
    assert body["servers"] == [{"server": "a", "fits": True, "reason": "", "instances": 2}]
    assert (body["placed"], body["gpus"]) == (2, 0)
    assert sum(part["host_bytes"] for part in body["estimate"]["parts"]) == body["estimate"]["host_bytes"]
    assert not Deployment.objects.exists()


def test_a_preview_of_what_fits_nowhere_explains_it(api: APIClient) -> None:
    make_server(name="a", now=timezone.now())
    version = make_model_version(size_bytes=900 << 30)
    body = api.post(f"{ROOT}preview/", {"model_version": version.pk}, format="json").json()
    assert body["placed"] == 0
    assert body["servers"][0]["reason"].startswith("not enough memory: needs 9")
    assert body["summary"].startswith("It does not fit on the only server: not enough memory")


# ------------------------------------------------------------------------------------------------ beside


def test_events_of_a_deployment_are_newest_first_and_filter(api: APIClient) -> None:
    deployment = make_deployment()
    for number, kind in enumerate(("instance.ready", "instance.crashed", "rollout.started")):
        at = NOW + dt.timedelta(seconds=number)
        Event.objects.create(at=at, kind=kind, message=kind, deployment=deployment, severity="error")
    Event.objects.create(at=NOW, kind="server.lost", message="x")
    kinds = [row["kind"] for row in api.get(path(deployment, "events/")).json()["results"]]
    assert kinds == ["rollout.started", "instance.crashed", "instance.ready"]

    def count(query: dict) -> int:
        return api.get("/api/v1/events/", query).json()["count"]

    assert count({}) == 4
    assert count({"kind__startswith": "instance."}) == 2
    assert count({"severity": "error", "deployment": deployment.pk}) == 3
    assert count({"since": (NOW + dt.timedelta(seconds=1)).isoformat()}) == 2


def test_instances_filter_by_what_lives(api: APIClient) -> None:
    server = make_server(name="a", now=NOW)
    live = make_instance(server=server, now=NOW)
    ended = make_instance(server=server, deployment=live.deployment, now=NOW, phase=Phase.ENDED)

    def ids(query: str) -> set[str]:
        return {row["id"] for row in api.get(f"/api/v1/instances/?{query}").json()["results"]}

    assert ids("live=true") == {live.pk}
    assert ids("live=false") == {ended.pk}
    assert ids(f"deployment={live.deployment_id}&phase=run") == {live.pk}
    assert ids("search=a") == {live.pk, ended.pk}
    shown = api.get(f"/api/v1/instances/{live.pk}/").json()
    assert (shown["server_name"], shown["revision_number"]) == ("a", 1)


def test_logs_of_an_ended_instance_are_the_kept_last_lines(api: APIClient) -> None:
    instance = make_instance(now=NOW, phase=Phase.ENDED, exits=[msgspec.to_builtins(CRASH)])
    body = api.get(f"/api/v1/instances/{instance.pk}/logs/").json()
    assert (body["live"], body["note"]) == (False, "the instance has ended")
    assert body["lines"] == ["--- attempt 1 ended with exit code 1 ---", "error: failed to load model"]
    one = api.get(f"/api/v1/instances/{instance.pk}/logs/?lines=1").json()
    assert one["lines"] == ["error: failed to load model"]


def test_logs_of_an_agent_that_is_away_are_the_kept_ones_with_the_reason(api: APIClient) -> None:
    deployment = make_deployment()
    server = make_server(online=False)
    make_instance(deployment=deployment, server=server, now=NOW, exits=[msgspec.to_builtins(CRASH)])
    (body,) = api.get(path(deployment, "logs/")).json()
    assert body["live"] is False
    assert body["note"] == "its agent is not connected"
    assert body["lines"][-1] == "error: failed to load model"


def test_agents_that_do_not_answer_cost_their_time_together() -> None:
    rows = [make_instance(server=make_server(now=NOW), now=NOW) for _ in range(3)]
    began = time.monotonic()
    tails = logs.tail_many(rows, timeout_s=0.5)
    assert time.monotonic() - began < 4
    assert all("did not answer" in found.note for found in tails)


@pytest.mark.parametrize("lines", ["0", "2001", "many", "-1"])
def test_a_wrong_number_of_lines_is_refused(api: APIClient, lines: str) -> None:
    instance = make_instance(now=NOW, phase=Phase.ENDED)
    problem(api.get(f"/api/v1/instances/{instance.pk}/logs/?lines={lines}"), 400, "invalid_query")


def test_engines_describe_their_parameters(api: APIClient, anonymous_api: APIClient) -> None:
    (engine,) = api.get("/api/v1/engines/").json()
    assert (engine["name"], engine["program"]) == ("llamacpp", "llama-server")
    assert engine["parameters"]["properties"]["parallel"]["type"] == "integer"
    assert anonymous_api.get("/api/v1/engines/").status_code == 401


def test_rows_of_the_controller_are_read_only(api: APIClient) -> None:
    instance = make_instance(now=NOW)
    problem(api.patch(f"/api/v1/instances/{instance.pk}/", {"phase": "stop"}, format="json"), 405, "method_not_allowed")
    problem(api.delete(f"/api/v1/instances/{instance.pk}/"), 405, "method_not_allowed")
    assert Instance.objects.get().phase == Phase.RUN
