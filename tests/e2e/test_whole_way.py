"""From `./stokehold up` to usage on a key, on each runtime and database; and after `down` nothing is left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import MODEL, Load, Stack
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(420)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("process", "sqlite"), id="process-sqlite"),
        pytest.param(
            ("docker", "postgresql"), id="docker-postgresql", marks=[pytest.mark.docker, pytest.mark.postgres]
        ),
    ],
)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation with the demo, answering."""
    runtime, database = request.param
    url = ""
    if runtime == "docker":
        request.getfixturevalue("engine_image")
    if database == "postgresql":
        url = request.getfixturevalue("postgres").create_database()
    made = Stack(tmp_path_factory.mktemp("stack") / "a home", database_url=url, runtime=runtime)
    try:
        made.up_with_demo()
        yield made
    finally:
        made.stop()


def test_up_ends_with_everything_ready(stack: Stack) -> None:
    found = stack.status(wait_s=10)
    assert found["ready"], found["problems"]
    assert found["deployments"] == [{"name": MODEL, "state": "ready", "ready": 1, "desired": 1, "reason": ""}]
    assert {row["runtime"] for row in stack.ready_instances()} == {stack.runtime}


def test_chat_streams_an_answer(stack: Stack) -> None:
    done = stack.run("chat", "Say hi")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_usage_on_the_key_equals_what_the_engine_reported_within_5_s(stack: Stack) -> None:
    project = stack.post("/projects/", {"name": f"e2e {stack.runtime}"})
    made = stack.post("/keys/", {"project": project["id"], "name": "sdk"})
    client = stack.client(made["key"])
    wait_for(lambda: _lists_the_model(client), within_s=5, what="the new key is known to the gateway")
    messages = [{"role": "user", "content": "Say hi"}]
    plain = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=10)  # type: ignore[call-overload]
    chunks = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            model=MODEL, messages=messages, max_tokens=10, stream=True, stream_options={"include_usage": True}
        )
    )
    reported = [plain.usage, chunks[-1].usage]
    expected = {
        "requests": 2,
        "prompt_tokens": sum(usage.prompt_tokens for usage in reported),
        "completion_tokens": sum(usage.completion_tokens for usage in reported),
    }

    def accounted() -> bool:
        rows = stack.get("/usage/", key=made["id"], model=MODEL, group_by="")
        totals = (rows["results"] if isinstance(rows, dict) else rows)[:1]
        return bool(totals) and {name: totals[0][name] for name in expected} == expected

    wait_for(accounted, within_s=5, what=f"usage {expected}")


def _lists_the_model(client: object) -> bool:
    import openai

    assert isinstance(client, openai.OpenAI)
    try:
        return MODEL in [model.id for model in client.models.list()]
    except openai.AuthenticationError:
        return False


def test_a_second_server_joins_takes_a_replica_and_a_drain_loses_no_request(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "second agent"
    first = stack.rows("/servers/")[0]["id"]
    second = stack.start_second_agent(folder)
    deployment = stack.deployment()
    try:
        stack.post(f"/deployments/{deployment['id']}/scale/", {"replicas": 2})
        wait_for(lambda: _servers(stack) == {first, second}, within_s=60, what="an instance on each server")
        with Load(stack) as load:
            stack.post(f"/servers/{first}/drain/")
            wait_for(
                lambda: not [row for row in stack.instances() if row["server"] == first],
                within_s=60,
                what="the drained server has no instance any more",
            )
            load.goes_on()
        assert load.failures == []
        assert _servers(stack) == {second}, stack.story()
    finally:
        stack.post(f"/servers/{first}/activate/")
        stack.post(f"/deployments/{deployment['id']}/scale/", {"replicas": 1})
        stack.post(f"/servers/{second}/drain/")
        wait_for(lambda: _servers(stack) == {first}, within_s=60, what="everything is back on the first server")
        stack.post(f"/servers/{second}/revoke/")
        stack.stop_second_agent(folder)


def _servers(stack: Stack) -> set[str]:
    return {row["server"] for row in stack.ready_instances()}


def test_engines_outlive_a_down_that_keeps_them_and_are_adopted(stack: Stack) -> None:
    before = [row["unit_id"] for row in stack.ready_instances()]
    assert stack.run("down", "--keep-engines").returncode == 0
    stack.up()
    assert [row["unit_id"] for row in stack.ready_instances()] == before


def test_down_leaves_no_process_and_no_container(stack: Stack) -> None:
    assert stack.run("down").returncode == 0
    assert stack.left_behind() == []
    if stack.runtime == "docker":
        shown = subprocess.run(
            ["docker", "ps", "-a", "--format", "{{.Labels}}"], capture_output=True, text=True, check=True
        )
        assert str(stack.home) not in shown.stdout
