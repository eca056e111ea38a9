"""One request from its first byte to its last: admit, relay, account. Whatever happens, it is settled once."""

from __future__ import annotations

import asyncio
import time

from gateway.access import Caller, authenticate, client_address, credentials, find_route, refused
from gateway.accesslog import Line, moment
from gateway.answers import JSON, rate_lines, send_error
from gateway.calls import Call, Endpoint, parse_call
from gateway.errors import GatewayError, gateway_starting
from gateway.estimates import answers, estimate, prompt_tokens
from gateway.fair import Share
from gateway.http.request import BadBody, BodyTooLarge, ClientGone, Header, Request
from gateway.meter import Dialect, Meter, Usage, error_body, error_event
from gateway.metrics import UNKNOWN_MODEL
from gateway.quotas.ledger import Hold
from gateway.quotas.subjects import Ask, Refusal, Subject
from gateway.quotas.windows import Spent
from gateway.relay import Opened, Pipe, StreamBroken
from gateway.requestlog import MOST_ANSWER_BYTES, Entry
from gateway.service import Service, instant
from gateway.state import State
from gateway.usage.records import Record
from wire.feed import FeedRoute, Price, RequestLog

CLIENT_CLOSED = 499
KEEPALIVE = b": keep-alive\n\n"
"""A comment (WHATWG, server-sent events): clients skip it, proxies between see life."""


class Exchange:
    """A request to one of the engine endpoints."""

    def __init__(
        self, service: Service, endpoint: Endpoint, request: Request, common: list[Header], request_id: bytes
    ) -> None:
        self._service = service
        self._endpoint = endpoint
        self._request = request
        self._common = common
        if endpoint.dialect is Dialect.ANTHROPIC:
            common.append((b"request-id", request_id))  # Anthropic's name for it
        self._request_id = request_id
        self._lines = b""
        """Header lines that tell of quotas."""
        self._started_at = time.monotonic()
        self._whole_at: float | None = None
        self._pipe: Pipe | None = None
        self._quiet_since = self._started_at
        self._pieces_seen = 0
        self._stopped: GatewayError | None = None
        self._caller: Caller | None = None
        self._call: Call | None = None
        self._route = _NO_ROUTE
        self._model = UNKNOWN_MODEL
        self._hold: Hold | None = None
        self._price: Price | None = None
        self._subjects: tuple[Subject, ...] = ()
        self._share = Share()
        self._ask = Ask(0, 0, True)
        self._meter: Meter | None = None
        self._usage = Usage()
        self._begun = ""
        self._answer = b""
        """For a project that has its answers kept."""
        self._accounted = False
        self._status = 500
        self._instance_id = ""

    async def run(self) -> None:
        """Serve it. Errors become answers; a client that goes away cancels everything at once."""
        service, request = self._service, self._request
        service.active.add(self)
        task = request.task
        request.on_gone = self._leave
        try:
            known = self._authenticate()  # before a byte of the body is kept
            call = self._admit(await self._read_body(), *known)
            if (caller := self._caller) is not None and (guard := caller.project.project.guard) is not None:
                call = self._weigh(await service.guards.ask(guard, caller, call, self._request_id))
            if self._subjects:
                call = await self._reserve(call)
            await self._relay(call)
        except GatewayError as error:
            self._refuse(error)
        except asyncio.CancelledError:
            if task is None or not (request.gone or self._stopped):
                raise
            task.uncancel()
            if self._stopped and not request.gone:
                self._refuse(self._stopped)
            else:
                self._status = CLIENT_CLOSED
        finally:
            request.on_gone = None
            service.active.discard(self)
            self._account()

    def tick(self, now: float) -> None:
        """Called about once a second: a word to a stream that is quiet, an end for what takes too long.

        `now` is monotonic.
        """
        settings, request = self._service.settings, self._request
        if now - self._started_at > settings.total_s and self._stopped is None:
            self._stopped = GatewayError(
                504, "request_timeout", f"The answer was not complete within {settings.total_s:.0f} s."
            )
            self._leave()
            return
        if self._call is None or not self._call.stream or request.gone:
            return
        pieces = self._pipe.pieces if self._pipe is not None else 0
        if pieces != self._pieces_seen:
            self._pieces_seen, self._quiet_since = pieces, now
        elif now - self._quiet_since >= settings.keepalive_s and not request.jammed:
            self._quiet_since = now
            if not request.started:
                self._begin_stream()
            request.write(KEEPALIVE)

    def _refuse(self, error: GatewayError) -> None:
        """Tell the client: as the answer, or within the stream that has begun."""
        self._status = error.status
        self._answer = error.body()
        if self._request.started:
            self._request.write(error_event(self._endpoint.dialect, error))
            self._request.cut()  # without the end of the body: nobody takes it for a whole answer
        else:
            body = error_body(self._endpoint.dialect, error)
            send_error(self._request, error, self._common, body, self._lines)

    def _leave(self) -> None:
        """The client has gone."""
        if self._request.task is not None:
            self._request.task.cancel()

    async def _read_body(self) -> bytes:
        limit = self._service.settings.max_body_bytes
        try:
            return await self._request.body(limit)
        except BodyTooLarge:
            raise _too_large(limit) from None
        except BadBody:
            raise GatewayError(400, "invalid_request", "The body of the request is not valid HTTP.") from None
        except ClientGone:
            raise GatewayError(CLIENT_CLOSED, "client_closed", "The client went away.") from None

    def _authenticate(self) -> tuple[State, Caller]:
        state = self._service.state
        if state is None:
            raise gateway_starting()
        caller = authenticate(
            state,
            credentials(self._request.headers),
            time.time(),
            address=client_address(self._request, self._service.settings.trusted_proxies),
            group=self._endpoint.group,
        )
        return state, caller

    def _admit(self, raw: bytes, state: State, caller: Caller) -> Call:
        if self._service.state is not state or time.monotonic() - self._started_at > _AGAIN_AFTER_S:
            state, caller = self._authenticate()  # the key may have been revoked, or have expired, while the body came
        self._caller = caller
        content_type = self._request.headers.get(b"content-type", JSON[1])
        call = parse_call(self._endpoint, raw, content_type)
        self._route = find_route(state, caller, call.model)
        self._share = Share(caller.project.project.id, caller.project.project.priority)
        self._subjects = caller.subjects(self._route.id)
        self._price = self._route.price
        return self._weigh(call)

    def _weigh(self, call: Call) -> Call:
        """Take this as what is asked, and estimate what it may use."""
        route = self._route
        taken = call.for_route(route)  # the route that serves it may take it otherwise, so `call` goes on as it is
        self._call, self._model = call, route.id
        if self._subjects:
            self._ask = estimate(taken, route.max_context_tokens, route.price)
        return call

    async def _reserve(self, call: Call) -> Call:
        """The call, as far as quotas leave it. Raises GatewayError 400, 429."""
        ledger, subjects, now = self._service.quota, self._subjects, instant()
        try:
            held = ledger.admit(subjects, self._ask, now)
            hold = self._hold = held if isinstance(held, Hold) else await held
        except Refusal as refusal:
            raise refused(refusal) from None
        finally:
            requests, tokens = ledger.rates(subjects, now)
            lines = b"" if requests is None else rate_lines(b"requests", requests)
            if tokens is not None:
                lines += rate_lines(b"tokens", tokens)
            if warnings := ledger.warnings(subjects, now):
                lines += b"x-stokehold-quota-warning: %b\r\n" % ", ".join(warnings).encode()
            self._lines = lines
        if hold.bound is None or not call.generates:
            return call
        self._call = call.bounded_to(max(1, hold.bound // answers(call)))
        return self._call

    async def _relay(self, call: Call) -> None:
        relay = self._service.relay
        opened = await relay.open(call, self._request_id, self._share, self._begin)
        self._instance_id = opened.name
        self._price = self._price or opened.route.price
        try:
            if opened.answer.is_stream:
                await self._stream(call, opened)
            else:
                self._whole(call, opened)
        finally:
            relay.close(opened)

    def _whole(self, call: Call, opened: Opened) -> None:
        if self._request.started:  # a stream was asked for, and has begun
            raise GatewayError(502, "engine_failed", "The engine did not answer with a stream.")
        body, usage, content_type = opened.answer.body(), None, opened.answer.content_type
        if not content_type or content_type.startswith(JSON[1]) or opened.call.translated:
            content_type = JSON[1]
            body, usage = opened.call.read_answer(body)
        self._whole_at = time.monotonic()
        self._usage = usage or Usage(prompt_tokens(call), 0, 0)
        self._status, self._answer = 200, body
        self._account()  # before the client has it: a process that dies in between has counted it
        self._request.answer(200, [(b"content-type", content_type), *self._common], body, self._lines)

    async def _stream(self, call: Call, opened: Opened) -> None:
        meter = self._meter = opened.call.meter()
        request = self._request
        pipe = self._pipe = Pipe(opened.answer, meter, request, self._begin_stream)
        if self._caller is not None and self._caller.project.project.request_log is not None:
            pipe.keep_bytes = MOST_ANSWER_BYTES
        try:
            await self._service.relay.pass_stream(opened, meter, call.model, pipe)
        except StreamBroken as broken:
            if not broken.told:
                raise broken.error from broken
            self._status = broken.error.status
            request.cut()
            return
        self._status = 200
        self._account()
        if not request.started:
            self._begin_stream()
        request.finish()

    def _begin_stream(self) -> None:
        self._request.start(200, [*_STREAM, *self._common], self._lines)

    def _begin(self) -> None:
        """An engine is about to be asked: from now on the request counts, even if this process dies."""
        if self._caller is not None and self._call is not None:
            asked = Usage(self._ask.prompt_tokens if self._subjects else prompt_tokens(self._call), 0, 0)
            now = time.time()
            record = self._record(self._caller, now, _DIED, asked, self._cost(asked), 0, 0)
            self._begun = self._service.journal.begin(now, record)

    def _cost(self, usage: Usage) -> int:
        if self._price is None:
            return 0
        return self._price.cost(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)

    def _record(
        self, caller: Caller, at: float, status: int, usage: Usage, cost: int, duration_ms: int, ttft_ms: int
    ) -> Record:
        return Record(
            int(at // 3600) * 3600,
            caller.project.project.id,
            caller.key.key.id,
            self._model,
            status,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            duration_ms,
            ttft_ms,
            cost,
            self._begun,
        )

    def _account(self) -> None:
        """Settle the quota, write the usage ahead, count and log; once."""
        if self._accounted:
            return
        self._accounted = True
        service, call, caller = self._service, self._call, self._caller
        ended = instant()
        if self._meter is not None and call is not None:
            told = self._meter.usage
            estimated = 0 if told is not None and told.prompt_tokens else prompt_tokens(call)
            self._usage = self._meter.produced(estimated)
        usage = self._usage
        duration_s = ended.monotonic_s - self._started_at
        first_at = self._pipe.first_at if self._pipe is not None else self._whole_at
        ttft_s = None if first_at is None else first_at - self._started_at
        cost = self._cost(usage)
        if self._hold is not None:
            service.quota.settle(self._hold, Spent(usage.total, cost), ended)
        if caller is not None and call is not None:
            ttft_ms = 0 if ttft_s is None else max(1, int(ttft_s * 1000))
            took_ms = int(duration_s * 1000)
            service.journal.add(self._record(caller, ended.unix_s, self._status, usage, cost, took_ms, ttft_ms))
            service.throughput.add(usage.total, ended.monotonic_s)
            if caller.project.project.request_log is not None:
                self._keep(caller, call, caller.project.project.request_log, ended.unix_s, took_ms)
        service.metrics.finished(self._model, self._status, usage, duration_s, ttft_s)
        if service.settings.access_log:
            service.access_log.add(
                Line(
                    moment(ended.unix_s),
                    self._request.path,
                    self._status,
                    self._model,
                    None if caller is None else f"sk-stk-{caller.key.key.id}",
                    self._instance_id,
                    call is not None and call.stream,
                    usage.prompt_tokens,
                    usage.completion_tokens,
                    round(duration_s * 1000, 1),
                    None if ttft_s is None else round(ttft_s * 1000, 1),
                    self._request_id.decode(),
                )
            )

    def _keep(self, caller: Caller, call: Call, rules: RequestLog, at: float, took_ms: int) -> None:
        """Have request and answer kept, as the project wishes."""
        pieces = self._pipe.kept if self._pipe is not None else []
        self._service.request_log.add(
            Entry(
                at,
                caller.project.project.id,
                rules,
                self._request_id.decode(),
                caller.key.key.id,
                self._request.path,
                self._endpoint.dialect,
                self._model,
                self._status,
                self._usage.prompt_tokens,
                self._usage.completion_tokens,
                took_ms,
                call.raw,
                b"".join(pieces) if pieces else self._answer,
                bool(pieces),
            )
        )


_NO_ROUTE = FeedRoute(id=UNKNOWN_MODEL, created=0)
_AGAIN_AFTER_S = 0.1
_DIED = 500
"""Status of a request whose process died while an engine worked on it."""

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
    )
