"""One request to one engine: choose, try, try again before the first byte, pass bytes on as they come.

Tries are repeated only for engines that cannot be reached or are still loading, only before anything went to the
client, within `RETRY_BUDGET_S`; cancelling the task (the client is gone) ends tries and cuts the
engine's connection at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from gateway.calls import Call
from gateway.errors import EngineUnreachable, GatewayError, from_engine
from gateway.estimates import prefix_of
from gateway.http.client import Answer, AnswerBroken, AnswerLate
from gateway.http.request import Request
from gateway.meter import EventTooLarge, StreamMeter
from gateway.metrics import Metrics
from gateway.routing import Balancer
from gateway.upstream import Pool
from wire.feed import FeedRoute, Target

log = structlog.get_logger(__name__)

RETRY_BUDGET_S = 10.0
"""How long a request waits for a restarting engine when there is no other."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5
_MAX_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine's answer with status 200: whole, or a stream. Give it to `Relay.close`."""

    target: Target
    answer: Answer


class StreamBroken(Exception):
    """A stream ended before it was complete; `error` is for the client."""

    def __init__(self, error: GatewayError, *, told: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.told = told
        """The engine's own error event has gone to the client already."""


class Relay:
    """Opens engines' answers. `find_route` gives the route of a model as it is now."""

    def __init__(
        self,
        pool: Pool,
        balancer: Balancer,
        metrics: Metrics,
        find_route: Callable[[str], FeedRoute | None],
        lost_at: Callable[[str], float | None],
        *,
        budget_s: float = RETRY_BUDGET_S,
    ) -> None:
        self._pool = pool
        self._balancer = balancer
        self._metrics = metrics
        self._find_route = find_route
        self._lost_at = lost_at
        self._budget_s = budget_s

    async def open(self, call: Call, request_id: bytes) -> Opened:
        """An answer with status 200. Raises GatewayError for anything else, after all tries."""
        deadline = time.monotonic() + self._budget_s
        tried: set[str] = set()
        pause_s, last = _FIRST_PAUSE_S, "no ready instance"
        while True:
            route = self._find_route(call.model)
            targets = route.targets if route is not None else ()
            prefix = prefix_of(call) if len(targets) > 1 else b""
            target = self._balancer.choose(targets, prefix, time.monotonic(), tried)
            if target is not None:
                try:
                    return await self._try(target, call, request_id)
                except EngineUnreachable as error:
                    last = "loading" if error.loading else error.reason
                    self._balancer.failed(target.instance_id, time.monotonic())
                    self._metrics.upstream_failed(call.model, last)
                    log.info(
                        "engine.unreachable",
                        instance=target.instance_id,
                        model=call.model,
                        reason=last,
                        request_id=request_id.decode(),
                    )
                    tried.add(target.instance_id)
                    continue
            if time.monotonic() + pause_s > deadline or not (tried or self._just_lost(call.model, time.monotonic())):
                raise self._unavailable(call.model, route, last, bool(tried))
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.6)
            tried.clear()

    async def _try(self, target: Target, call: Call, request_id: bytes) -> Opened:
        self._balancer.started(target.instance_id)
        try:
            body = call.body_for(target.engine_model)
            answer = await self._pool.line(target).ask(call.path, call.content_type, body, request_id)
        except BaseException:
            self._balancer.finished(target.instance_id)
            raise
        opened = Opened(target, answer)
        if answer.status == 200:
            self._balancer.succeeded(target.instance_id)
            return opened
        self.close(opened)
        if answer.status == 503:
            raise EngineUnreachable("loading", loading=True)
        error = from_engine(answer.status, answer.body()[:_MAX_ERROR_BYTES])
        if error.status >= 500:
            self._metrics.upstream_failed(call.model, f"status {answer.status}")
        raise error

    def close(self, opened: Opened) -> None:
        """Ends an answer: its connection is kept when it was read whole, else cut."""
        opened.answer.close()
        self._balancer.finished(opened.target.instance_id)

    async def pass_stream(self, opened: Opened, meter: StreamMeter, model: str, pipe: Pipe) -> None:
        """Pass a stream on, event by event, as fast as the client takes it. Raises StreamBroken."""
        opened.answer.pipe(pipe)
        error = await pipe.ended
        if isinstance(error, AnswerLate):
            raise self._broken(model, meter, 504, "engine_timeout", "The engine stopped sending.")
        if error is not None or not meter.done or meter.failed:
            raise self._broken(model, meter, 502, "engine_failed", BROKE_OFF)

    def _broken(self, model: str, meter: StreamMeter, status: int, code: str, message: str) -> StreamBroken:
        self._metrics.upstream_failed(model, "broken stream")
        return StreamBroken(GatewayError(status, code, message), told=meter.failed)

    def _just_lost(self, model: str, now: float) -> bool:
        """The route lost its last instance a moment ago: an engine that restarts is back within seconds."""
        lost_at = self._lost_at(model)
        return lost_at is not None and now - lost_at < self._budget_s

    @staticmethod
    def _unavailable(model: str, route: FeedRoute | None, last: str, tried: bool) -> GatewayError:
        if route is None:
            return GatewayError(404, "model_not_found", f"The model '{model}' is no longer served.", param="model")
        if not route.targets or last == "loading":
            reason = route.reason or ("its engine is loading" if last == "loading" else "no instance is ready")
            return GatewayError(
                503,
                "model_not_ready",
                f"The model '{model}' is not ready: {reason}.".replace("..", "."),
                retry_after_s=5,
            )
        return GatewayError(
            502, "engine_unreachable", f"No engine of the model '{model}' could be reached.", retry_after_s=2
        )


class Pipe:
    """From an engine's answer through the meter to the client, without a task of its own: a chunk is written in the
    very call that brought it. While the client takes nothing, the engine is not read."""

    __slots__ = ("_answer", "_begin", "_meter", "_request", "ended", "first_at", "pieces")

    def __init__(self, answer: Answer, meter: StreamMeter, request: Request, begin: Callable[[], None]) -> None:
        self._answer = answer
        self._meter = meter
        self._request = request
        self._begin = begin
        """Writes the head of the client's answer."""
        self.ended: asyncio.Future[AnswerBroken | None] = asyncio.get_running_loop().create_future()
        self.first_at: float | None = None
        """Monotonic time at which the first piece went to the client."""
        self.pieces = 0
        """That went to the client."""
        request.on_room = answer.resume

    def take(self, data: bytes) -> None:
        if self.ended.done():
            return
        try:
            out = self._meter.feed(data)
        except EventTooLarge:
            self._fail(AnswerBroken("an event without an end"))
            return
        if out:
            self._write(out)

    def end(self, error: AnswerBroken | None) -> None:
        if self.ended.done():
            return
        if error is None:
            try:
                out = self._meter.end()
            except EventTooLarge:
                out = b""
            if out:
                self._write(out)
        self.ended.set_result(error)

    def _write(self, out: bytes) -> None:
        request = self._request
        if not self.pieces:
            self.first_at = time.monotonic()
            if not request.started:
                self._begin()
        self.pieces += 1
        request.write(out)
        if request.jammed:
            self._answer.pause()

    def _fail(self, error: AnswerBroken) -> None:
        self.ended.set_result(error)
        self._answer.close()


BROKE_OFF = "The engine broke off in the middle of its answer: it is not complete."
