"""One request from its first byte to its last: admit, relay, account. Whatever happens, it is settled once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from gateway.access import Caller, authenticate, find_route, is_limited, refused
from gateway.answers import JSON, Header, Receive, Send, send_answer, send_error
from gateway.calls import Call, Endpoint, estimate, parse_call, prompt_tokens
from gateway.errors import GatewayError, gateway_starting
from gateway.journal import Record
from gateway.meter import StreamMeter, Usage
from gateway.metrics import UNKNOWN_MODEL
from gateway.quota import Ask, Hold, Rate, Refusal
from gateway.relay import Opened, StreamBroken
from gateway.service import Service, instant
from gateway.state import State

CLIENT_CLOSED = 499
_WATCH_AFTER_S = 0.02
"""Shorter requests are not watched for a client that goes away: a task would cost more than it saves."""
_DRAIN_S, _DRAIN_FACTOR = 3.0, 4
_NO_ESTIMATE = Ask(0, 0, True)


class Exchange:
    """A request to one of the engine endpoints."""

    def __init__(
        self, service: Service, endpoint: Endpoint, headers: dict[bytes, bytes], common: list[Header], request_id: str
    ) -> None:
        self._service = service
        self._endpoint = endpoint
        self._headers = headers
        self._common = common
        self._request_id = request_id
        self._started_at = time.monotonic()
        self._first_byte_at: float | None = None
        self._caller: Caller | None = None
        self._call: Call | None = None
        self._model = UNKNOWN_MODEL
        self._hold: Hold | None = None
        self._meter: StreamMeter | None = None
        self._usage = Usage()
        self._status = 500
        self._instance_id = ""
        self._gone = False
        self._answering = False
        self._watcher: asyncio.Task[None] | None = None

    async def run(self, receive: Receive, send: Send) -> None:
        """Serve it. Errors become answers; a client that goes away cancels everything at once."""
        service = self._service
        service.metrics.in_flight += 1
        task = asyncio.current_task()
        timer: asyncio.TimerHandle | None = None
        try:
            self._authenticate()  # before a byte of the body is kept
            raw = await self._read_body(receive)
            timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._watch, receive, task)
            call = self._admit(raw)
            await self._relay(call, send)
        except GatewayError as error:
            self._status = error.status
            if not self._gone:
                await send_error(send, error, self._common)
        except asyncio.CancelledError:
            if not self._gone or task is None:
                raise
            task.uncancel()
            self._status = CLIENT_CLOSED
        finally:
            if timer is not None:
                timer.cancel()
            if self._watcher is not None:
                self._watcher.cancel()
            service.metrics.in_flight -= 1
            self._account()

    def _watch(self, receive: Receive, task: asyncio.Task[Any] | None) -> None:
        if task is not None:
            self._watcher = asyncio.create_task(self._await_disconnect(receive, task))

    async def _await_disconnect(self, receive: Receive, task: asyncio.Task[Any]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._status == 500:  # not answered yet: the client has gone
            self._gone = True
            task.cancel()

    async def _read_body(self, receive: Receive) -> bytes:
        limit = self._service.settings.max_body_bytes
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            await self._drain(receive, int(length))
            raise _too_large(limit)
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._gone = True
                raise GatewayError(CLIENT_CLOSED, "client_closed", "The client went away.")
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > limit:
                await self._drain(receive, limit)
                raise _too_large(limit)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _drain(self, receive: Receive, expected: int) -> None:
        """Read on for a moment and forget it, so that a client that is still sending sees the answer, not a reset."""
        if expected > self._service.settings.max_body_bytes * _DRAIN_FACTOR:
            return
        left = self._service.settings.max_body_bytes * _DRAIN_FACTOR
        try:
            async with asyncio.timeout(_DRAIN_S):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def _authenticate(self) -> tuple[State, Caller]:
        state = self._service.state
        if state is None:
            raise gateway_starting()
        return state, authenticate(state, self._headers.get(b"authorization"), time.time())

    def _admit(self, raw: bytes) -> Call:
        service, now = self._service, instant()
        state, caller = self._authenticate()  # again: the key may have been revoked while the body came
        self._caller = caller
        call = parse_call(self._endpoint, raw)
        route = find_route(state, caller, call.model)
        self._call, self._model = call, route.id
        if call.endpoint is Endpoint.EMBEDDINGS and "embeddings" not in route.endpoints:
            raise GatewayError(
                400, "unsupported_by_model", f"The model '{route.id}' does not make embeddings.", param="model"
            )
        ask = estimate(call, route.max_context_tokens) if is_limited(caller) else _NO_ESTIMATE
        try:
            self._hold = service.ledger.admit(caller.key, caller.project, ask, now)
        except Refusal as refusal:
            raise refused(refusal) from None
        finally:
            self._add_rates(*service.ledger.rates(caller.key, caller.project, now))
        return call

    def _add_rates(self, requests: Rate | None, tokens: Rate | None) -> None:
        for name, rate in ((b"requests", requests), (b"tokens", tokens)):
            if rate is not None:
                self._common += (
                    (b"x-ratelimit-limit-" + name, b"%d" % rate.limit),
                    (b"x-ratelimit-remaining-" + name, b"%d" % rate.remaining),
                    (b"x-ratelimit-reset-" + name, _span(rate.reset_s)),
                )

    async def _relay(self, call: Call, send: Send) -> None:
        relay = self._service.relay
        opened = await relay.open(call, self._request_id)
        self._instance_id = opened.target.instance_id
        try:
            if opened.is_stream:
                await self._stream(call, opened, send)
            else:
                await self._whole(call, opened, send)
        finally:
            relay.close(opened)

    async def _whole(self, call: Call, opened: Opened, send: Send) -> None:
        body, usage = await self._service.relay.read_whole(opened, call.model)
        self._first_byte_at = time.monotonic()
        self._usage = usage or Usage(prompt_tokens(call), 0, 0)
        self._status = 200
        await send_answer(send, 200, body, [JSON, *self._common])

    async def _stream(self, call: Call, opened: Opened, send: Send) -> None:
        meter = self._meter = StreamMeter(call.model, strip_usage=not call.wants_usage)

        async def write(data: bytes) -> None:
            if not self._answering:
                self._answering = True
                self._first_byte_at = time.monotonic()
                await send({"type": "http.response.start", "status": 200, "headers": [*_STREAM, *self._common]})
            await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            await self._service.relay.pass_stream(opened, meter, call.model, write)
        except StreamBroken as broken:
            if not self._answering:
                raise broken.error from broken
            self._status = broken.error.status
            if not broken.told:
                await send({"type": "http.response.body", "body": broken.error.event(), "more_body": True})
            return  # without the end of the body: the server cuts the connection, nobody takes it for a whole answer
        self._status = 200
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _account(self) -> None:
        """Settle the quota, write the usage ahead, count and log."""
        service, call, caller = self._service, self._call, self._caller
        ended = instant()
        if self._meter is not None and call is not None:
            estimated = 0 if self._meter.usage is not None else prompt_tokens(call)
            self._usage = self._meter.produced(estimated)
        usage = self._usage
        duration_s = ended.monotonic_s - self._started_at
        ttft_s = None if self._first_byte_at is None else self._first_byte_at - self._started_at
        if self._hold is not None:
            service.ledger.settle(self._hold, usage.total, ended)
        if caller is not None and call is not None:
            service.journal.add(
                Record(
                    hour=int(ended.unix_s // 3600) * 3600,
                    project_id=caller.project.project.id,
                    key_id=caller.key.key.id,
                    model=self._model,
                    status=self._status,
                    prompt_tokens=usage.prompt_tokens,
                    cached_tokens=usage.cached_tokens,
                    completion_tokens=usage.completion_tokens,
                    duration_ms=int(duration_s * 1000),
                    ttft_ms=0 if ttft_s is None else int(ttft_s * 1000),
                )
            )
            service.throughput.add(usage.total, ended.monotonic_s)
        service.metrics.finished(self._model, self._status, usage, duration_s, ttft_s)
        if service.settings.access_log:
            service.access_log.add(
                ended.unix_s,
                path=self._endpoint.value,
                status=self._status,
                model=self._model,
                key=None if caller is None else f"sk-stk-{caller.key.key.id}",
                instance=self._instance_id,
                stream=call is not None and call.stream,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                took_ms=round(duration_s * 1000, 1),
                ttft_ms=None if ttft_s is None else round(ttft_s * 1000, 1),
                request_id=self._request_id,
            )


_STREAM: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def _too_large(limit: int) -> GatewayError:
    return GatewayError(
        413,
        "request_too_large",
        f"The body is larger than {limit // (1024 * 1024)} MiB.",
        headers=((b"connection", b"close"),),
    )


def _span(seconds: float) -> bytes:
    """A duration as OpenAI writes it in x-ratelimit-reset: 6m0s, 12s, 20ms."""
    if seconds < 1:
        return b"%dms" % int(seconds * 1000)
    minutes, rest = divmod(int(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
