"""The way of servers to files (`models_registry.blobs`), past what only people need of Django: a fleet asks often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from asgiref.sync import ThreadSensitiveContext
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.exception import convert_exception_to_response
from django.db import connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from config.ports import Application, Receive, Scope, Send

PREFIXES = ("/api/v1/blobs/", "/api/v1/manifests/")


class NodeFiles(ASGIHandler):
    """ASGI: serves `PREFIXES` by Django's views without its middlewares (sessions, CSRF, messages, logs of requests).

    One thread of its own asks the database for all of them, so that a long answer holds neither a thread nor a
    connection. All else goes to `otherwise`.
    """

    chunk_size = 1 << 20

    def __init__(self, otherwise: Application) -> None:
        super().__init__()
        self._otherwise = otherwise
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="node-files")

    def close(self) -> None:
        """End its thread, and the thread's connection."""
        self._thread.submit(connections.close_all)
        self._thread.shutdown()

    def load_middleware(self, is_async: bool = False) -> None:
        """As of `settings.MIDDLEWARE = []`."""
        self._view_middleware = self._template_response_middleware = self._exception_middleware = []
        self._views = convert_exception_to_response(self._get_response_async)
        self._middleware_chain = self._respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(PREFIXES):
            await self._otherwise(scope, receive, send)
            return
        async with ThreadSensitiveContext(executor=self._thread):
            await self.handle(scope, receive, send)

    async def _respond(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = await self._views(request)
        if not response.streaming and not response.has_header("Content-Length"):  # else a middleware's work
            response.headers["Content-Length"] = str(len(response.content))
        return response
