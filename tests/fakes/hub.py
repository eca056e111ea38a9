"""A Hugging Face Hub that does what a test tells it: models, revisions, gates, LFS files on a signed CDN, faults.

Tests of downloads point `HF_ENDPOINT` (or `endpoint=`) at `hub.url`. True to what the Hub was seen to answer in 2026
and to what `huggingface_hub` 2.4 reads; no Xet (`X-Xet-Hash`, `xetHash`), no datasets and spaces, no writing.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

from tests.fakes.hub_answers import DENIED, AnsweringHub, Refused
from tests.fakes.hub_faults import Answer, Asked, Fault, take
from tests.fakes.hub_repo import HubFile, Repo, Synthetic, synthetic
from tests.fakes.hub_send import forever, send

__all__ = ["Asked", "FakeHub", "Fault", "HubFile", "Repo", "Synthetic", "running_hub", "serving_hub", "synthetic"]

_LIMITS = {"api": 500, "resolvers": 3000}
_WINDOW_S = 300


@dataclass
class FakeHub(AnsweringHub):
    """Change its attributes at any time; the next request does as they say."""

    latency_s: float = 0.0
    """Before each answer."""
    bytes_per_second: float = 0.0
    """Of each connection; 0: as fast as it goes."""
    faults: list[Fault] = field(default_factory=list)
    hook: Callable[[Asked], Fault | None] | None = None
    """Asked before `faults`: what goes wrong with this request, whatever it is for."""
    asked: list[Asked] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of each file, by its path in its repository."""
    open: int = 0
    """Files being sent now."""
    most_open: int = 0
    most_connections: int = 0
    """Most open at once to both servers, looked at whenever a request comes."""
    _runners: list[web.AppRunner] = field(default_factory=list)

    @property
    def leaks(self) -> list[Asked]:
        """Requests that brought an Authorization header to the CDN: must be none."""
        return [asked for asked in self.asked if asked.host == "cdn" and asked.authorization]

    def asked_for(self, file: str, host: str = "hub", method: str = "GET") -> list[Asked]:
        """Requests so far for this file (path in its repository)."""
        return [one for one in self.asked if (one.file, one.host, one.method) == (file, host, method)]

    async def handle(self, request: web.Request, host: Literal["hub", "cdn"]) -> web.StreamResponse:
        headers = request.headers
        asked = Asked(
            host,
            request.method,
            request.path,
            headers.get("Range", ""),
            headers.get("Authorization", ""),
            request.query_string,
            request.host,
        )
        self.asked.append(asked)
        connections = sum(len(runner.server.connections) for runner in self._runners if runner.server)
        self.most_connections = max(self.most_connections, connections)
        await asyncio.sleep(self.latency_s)
        answer = self.answer(request, asked)
        fault = (self.hook(asked) if self.hook else None) or take(self.faults, asked, answer)
        asked.fault = fault
        if fault and fault.hang:
            await forever()
        if fault:
            answer = self._faulty(request, asked, answer, fault)
        elif answer.link:
            self.sign(answer, self.signed_for_s)
        if host == "hub":
            self._add_hub_headers(asked, answer)
        asked.status = answer.status
        if answer.body is None:
            return web.Response(status=answer.status, headers=answer.headers)
        return await self._send(request, asked, answer, fault)

    async def _send(
        self, request: web.Request, asked: Asked, answer: Answer, fault: Fault | None
    ) -> web.StreamResponse:
        of_file = asked.file != "" and answer.status in (200, 206) and asked.method == "GET"

        def count(sent: int) -> None:
            if of_file:
                self.sent[asked.file] += sent

        self.open += of_file
        self.most_open = max(self.most_open, self.open)
        try:
            return await send(request, answer, fault, self.bytes_per_second, count)
        finally:
            self.open -= of_file

    def _faulty(self, request: web.Request, asked: Asked, answer: Answer, fault: Fault) -> Answer:
        """The answer with what the fault changes before its body is sent."""
        if fault.redirect_to:
            place = request.raw_path if fault.redirect_to == "loop" else fault.redirect_to
            return Answer(302, {**answer.headers, "Location": place})
        if fault.status:
            text = "Too Many Requests" if fault.status == 429 else "Internal Error - We're working hard to fix this"
            return Refused(fault.status, text, **_waits(asked, fault)).answer(asked)
        if fault.expired and not answer.link:
            return Refused(403, DENIED).answer(asked)
        if fault.etag:
            answer.headers["X-Linked-ETag" if answer.link else "ETag"] = f'"{fault.etag}"'
        if answer.link:
            self.sign(answer, -1.0 if fault.expired else self.signed_for_s)
        changed = bool(fault.etag) and "If-Range" in request.headers
        if answer.body and answer.status == 206 and (fault.ignore_range or changed):
            answer.status, answer.first, answer.count = 200, 0, answer.body.size
            del answer.headers["Content-Range"]
        return answer

    def _add_hub_headers(self, asked: Asked, answer: Answer) -> None:
        bucket = _bucket(asked)
        limit = _LIMITS[bucket]
        answer.headers = {
            "X-Request-Id": f"Root=1-{len(self.asked):08x}",
            "RateLimit": f'"{bucket}";r={limit - 1};t={_WINDOW_S}',
            "RateLimit-Policy": f'"fixed window";"{bucket}";q={limit};w={_WINDOW_S}',
            **answer.headers,
        }


def _bucket(asked: Asked) -> str:
    return "resolvers" if "/resolve/" in asked.path else "api"


def _waits(asked: Asked, fault: Fault) -> dict[str, str]:
    waits = {"Retry_After": fault.retry_after} if fault.retry_after else {}
    if fault.rate_reset_s is not None:
        waits["RateLimit"] = f'"{_bucket(asked)}";r=0;t={fault.rate_reset_s}'
    return waits


@asynccontextmanager
async def running_hub(hub: FakeHub, *, port: int = 0, cdn_port: int = 0) -> AsyncIterator[FakeHub]:
    """Serve it and its CDN on loopback; `hub.url` is set. With its old ports it comes back after an outage."""
    hub._runners = [await _runner(hub, "hub"), await _runner(hub, "cdn")]
    try:
        hub.port = await _listen(hub._runners[0], port)
        hub.cdn_port = await _listen(hub._runners[1], cdn_port)
        yield hub
    finally:
        for runner in hub._runners:
            await runner.cleanup()


async def _runner(hub: FakeHub, host: Literal["hub", "cdn"]) -> web.AppRunner:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await hub.handle(request, host)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)  # and HEAD
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    return runner


async def _listen(runner: web.AppRunner, port: int) -> int:
    await web.TCPSite(runner, "127.0.0.1", port, backlog=2048).start()
    return int(runner.addresses[0][1])


@contextmanager
def serving_hub(hub: FakeHub, *, port: int = 0, cdn_port: int = 0) -> Iterator[FakeHub]:
    """The same from a thread of its own, for tests that are not async."""
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with running_hub(hub, port=port, cdn_port=cdn_port):
            ready.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run, name="fake hub")
    thread.start()
    try:
        loop, stop = ready.result()
        try:
            yield hub
        finally:
            loop.call_soon_threadsafe(stop.set)
    finally:
        thread.join()
