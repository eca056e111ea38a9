"""Threads of requests, and their connections to the database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.urls import path

from config.ports import Application, Receive, Scope, Send
from config.threads import KeptThreads
from tests.waiting import wait_for

SCOPE = {
    "type": "http",
    "http_version": "1.1",
    "method": "GET",
    "query_string": b"",
    "headers": [(b"host", b"testserver")],
}


def how_many_users(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(User.objects.count()))


urlpatterns = [path("users", how_many_users)]


@pytest.fixture
def created() -> Iterator[list[Any]]:
    """Connections to the database that were opened."""
    found: list[Any] = []

    def note(connection: Any, **_: object) -> None:
        found.append(connection)

    connection_created.connect(note)
    yield found
    connection_created.disconnect(note)


async def get(application: Application, path: str = "/users") -> bytes:
    communicator = ApplicationCommunicator(application, {**SCOPE, "path": path})
    await communicator.send_input({"type": "http.request", "body": b"", "more_body": False})
    start, body = await communicator.receive_output(20), await communicator.receive_output(20)
    assert start["status"] == 200
    await communicator.wait(20)
    return bytes(body["body"])


@pytest.mark.urls(__name__)
@pytest.mark.django_db(transaction=True)
def test_requests_use_connections_again(created: list[Any]) -> None:
    application = KeptThreads(get_asgi_application(), kept=2)

    async def ask() -> None:
        for _ in range(10):
            assert await get(application) == b"0"
        for _ in range(3):
            assert await asyncio.gather(*[get(application) for _ in range(6)]) == [b"0"] * 6

    try:
        async_to_sync(ask)()
        assert len(created) <= 1 + 3 * 5, "six at once need six, and two of them stay"
        assert len(application._idle) == 2
    finally:
        application.close()
    wait_for(lambda: all(one.connection is None for one in created), what="their connections are closed")
    assert not connection.in_atomic_block


async def at_work(scope: Scope, receive: Receive, send: Send) -> None:
    """Says on which thread it works, for as long as it was asked to."""

    def work(seconds: float) -> str:
        time.sleep(seconds)
        return str(threading.get_ident())

    name = await sync_to_async(work)(float(scope["path"]))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": name.encode()})


def test_one_after_the_other_get_the_same_thread_and_two_at_once_get_two() -> None:
    application = KeptThreads(at_work)

    async def ask() -> None:
        assert await get(application, "0") == await get(application, "0")
        one, two = await asyncio.gather(get(application, "0.2"), get(application, "0.2"))
        assert one != two
        assert await get(application, "0") in (one, two)

    async_to_sync(ask)()
    application.close()


def test_the_work_of_a_client_that_left_holds_up_nobody() -> None:
    application = KeptThreads(at_work)

    async def ask() -> None:
        async def ignore(_: object) -> None: ...

        async def nothing() -> dict[str, Any]:
            return await asyncio.get_running_loop().create_future()

        left = asyncio.create_task(application({**SCOPE, "path": "1.5"}, nothing, ignore))
        await asyncio.sleep(0.2)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert not application._idle, "it still works"
        began = time.monotonic()
        await get(application, "0")
        assert time.monotonic() - began < 1
        while len(application._idle) < 2:
            await asyncio.sleep(0.05)

    async_to_sync(ask)()
    application.close()


def test_a_thread_is_not_free_when_what_waited_for_it_was_cancelled() -> None:
    """The server gives a request up for good a while after its client left: Django's last words wait in line then."""
    began, release = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        release.wait(20)

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await sync_to_async(work)()
        finally:
            await sync_to_async(str)()

    async def nothing(*_: object) -> Any: ...

    async def ask() -> None:
        left = asyncio.create_task(application(dict(SCOPE), nothing, nothing))
        await asyncio.to_thread(began.wait, 20)
        for _ in range(2):  # as the client leaves, then as the server has waited long enough
            left.cancel()
            await asyncio.wait({left}, timeout=0.1)
        assert left.done()
        await asyncio.sleep(0.1)
        assert not application._idle, "it still works"
        release.set()
        while not application._idle:
            await asyncio.sleep(0.01)

    application = KeptThreads(inner)
    async_to_sync(ask)()
    application.close()


def test_what_is_not_http_passes() -> None:
    seen = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: object) -> Any: ...

    async_to_sync(KeptThreads(inner))({"type": "websocket"}, nothing, nothing)
    assert seen == ["websocket"]
