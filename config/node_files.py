"""The way of servers to files (`models_registry.blobs`), past what only people need of Django: a fleet asks often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

from asgiref.sync import ThreadSensitiveContext
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.exception import convert_exception_to_response
from django.db import connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from config.ports import NODE_FILE_PREFIXES, Application, Receive, Scope, Send

_THREADS = 4
"""One that waits for a lock of the database holds up a share of the questions only."""


class NodeFiles(ASGIHandler):
    """ASGI: serves `NODE_FILE_PREFIXES` by Django's views without its middlewares (sessions, CSRF, messages, logs).

    A few threads of its own ask the database for all of them, so that a long answer holds neither a thread nor a
    connection. All else goes to `otherwise`.
    """

    chunk_size = 1 << 20

    def __init__(self, otherwise: Application) -> None:
        super().__init__()
        self._otherwise = otherwise
        self._threads = [ThreadPoolExecutor(1, "node-files") for _ in range(_THREADS)]
        self._turns = cycle(self._threads)

    def close(self) -> None:
        """End its threads, and their connections."""
        for thread in self._threads:
            thread.submit(connections.close_all)
            thread.shutdown()

    def load_middleware(self, is_async: bool = False) -> None:
        """As of `settings.MIDDLEWARE = []`."""
        self._view_middleware = self._template_response_middleware = self._exception_middleware = []
        self._views = convert_exception_to_response(self._get_response_async)
        self._middleware_chain = self._respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(NODE_FILE_PREFIXES):
            await self._otherwise(scope, receive, send)
            return
        async with ThreadSensitiveContext(executor=next(self._turns)):
            await self.handle(scope, receive, send)

    async def _respond(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = await self._views(request)
        if not response.streaming and not response.has_header("Content-Length"):  # else a middleware's work
            response.headers["Content-Length"] = str(len(response.content))
        return response
