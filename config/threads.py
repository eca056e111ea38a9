"""On which threads requests run what is not asynchronous: views, middlewares, the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from asgiref.sync import ThreadSensitiveContext
from django.db import connections

from config.ports import Application, Receive, Scope, Send

KEPT = 8
"""Threads that stay, each with its connection to the database. Only a burst has more requests in work than that."""


class KeptThreads:
    """ASGI: gives each HTTP request a thread to itself, as Django does, but one that was there before.

    Django alone starts a thread for each request. Its connection to the database is a new one each time, and with
    PostgreSQL it stays open until the garbage collector finds it: under load they are soon as many as PostgreSQL takes.
    """

    def __init__(self, application: Application, kept: int = KEPT) -> None:
        self._application = application
        self._kept = kept
        self._idle: list[_Thread] = []  # the one used last at the end: in quiet times the others' connections grow old

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        thread = self._idle.pop() if self._idle else _Thread()
        try:
            async with ThreadSensitiveContext(executor=thread):
                await self._application(scope, receive, send)
        finally:
            loop = asyncio.get_running_loop()
            thread.when_free(lambda: loop.call_soon_threadsafe(self._take_back, thread))

    def close(self) -> None:
        """End those that wait for work, and their connections."""
        while self._idle:
            self._idle.pop().end()

    def _take_back(self, thread: _Thread) -> None:
        if len(self._idle) < self._kept:
            self._idle.append(thread)
        else:
            thread.end()


class _Thread(ThreadPoolExecutor):
    """A single one, that tells when it has no work."""

    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="request")
        self._newest: Future[Any] | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._newest = super().submit(fn, *args, **kwargs)
        return self._newest

    def when_free(self, tell: Callable[[], object]) -> None:
        """After what it has begun: the work of a client that left goes on until its end."""
        newest = self._newest
        if newest is None or (newest.done() and not newest.cancelled()):
            tell()
        else:
            self.submit(tell)  # the newest may end before those ahead of it: by being cancelled

    def end(self) -> None:
        self.submit(connections.close_all)
        self.shutdown(wait=False)
