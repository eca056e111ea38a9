"""The way of servers to files, past Django's middlewares."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator

from config.node_files import NodeFiles
from config.ports import Receive, Scope, Send
from fleet.models import Server
from tests.models_registry.test_blobs import make_node

pytestmark = pytest.mark.django_db(transaction=True)


async def otherwise(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"another"})


def ask(path: str, token: dict[str, str], method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    headers = [(b"host", b"master"), *((key.lower().encode(), value.encode()) for key, value in token.items())]
    scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": method, "path": path, "query_string": b""}

    application = NodeFiles(otherwise)

    async def scenario() -> tuple[int, dict[str, str], bytes]:
        communicator = ApplicationCommunicator(application, {**scope, "headers": headers})
        await communicator.send_input({"type": "http.request", "body": b"", "more_body": False})
        start, body = await communicator.receive_output(20), await communicator.receive_output(20)
        await communicator.wait(20)
        told = {key.decode().lower(): value.decode() for key, value in start["headers"]}
        return start["status"], told, body["body"]

    try:
        return async_to_sync(scenario)()
    finally:
        application.close()


def test_it_serves_files_and_leaves_the_rest() -> None:
    _, token = make_node(Server, "s1")
    status, headers, body = ask(f"/api/v1/manifests/{'0' * 64}/peers", token)
    assert status == 200
    assert int(headers["content-length"]) == len(body) > 0
    assert "set-cookie" not in headers
    assert ask("/api/v1/servers/", token)[0] == 299


@pytest.mark.parametrize(("path", "status"), [("/api/v1/blobs/nothing", 404), ("/api/v1/blobs/a/b/c", 404)])
def test_what_is_not_there_is_a_problem_document(path: str, status: int) -> None:
    _, token = make_node(Server, "s1")
    got, headers, body = ask(path, token)
    assert (got, headers["content-type"]) == (status, "application/problem+json")
    assert int(headers["content-length"]) == len(body)


def test_who_is_not_a_server_gets_nothing() -> None:
    assert ask(f"/api/v1/blobs/{'0' * 64}", {})[0] == 401
    assert ask(f"/api/v1/blobs/{'0' * 64}", {}, "POST")[0] == 405
