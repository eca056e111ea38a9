"""One request to one engine: choose, try, try again before the first byte, pass bytes on as they come.

A try is repeated on another instance when an engine cannot be reached or is still loading; an engine's own fault sends
the request on to the next share or fallback of its route. Both only before anything of an answer went to the client,
within `RETRY_BUDGET_S` and a budget for all requests; cancelling the task (the client is gone) ends tries and cuts the
engine's connection at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from gateway.calls import Call
from gateway.errors import EngineUnreachable, GatewayError, from_engine
from gateway.estimates import prefix_of, session_of
from gateway.fair import Share, Turns
from gateway.http.client import Answer, AnswerBroken, AnswerLate
from gateway.http.request import Request
from gateway.meter import EventTooLarge, Meter
from gateway.metrics import Metrics
from gateway.routing import Balancer, RetryBudget, is_ready, resolve
from gateway.upstream import Line, Pool, outside_name
from wire.feed import FeedRoute

log = structlog.get_logger(__name__)

RETRY_BUDGET_S = 10.0
"""How long a request waits for a restarting engine when there is no other."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5
_MAX_ERROR_BYTES = 64 * 1024


class Opened(NamedTuple):
    """An engine's answer with status 200: whole, or a stream. Give it to `Relay.close`."""

    name: str
    """Of the instance, or of the provider outside."""
    answer: Answer
    route: FeedRoute
    """The one that serves: of another name than the call's behind an alias, a split or a fallback."""
    call: Call
    """As this route took it."""


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
        turns: Turns,
        *,
        budget_s: float = RETRY_BUDGET_S,
    ) -> None:
        self._pool = pool
        self._balancer = balancer
        self._metrics = metrics
        self._find_route = find_route
        self._lost_at = lost_at
        self._turns = turns
        self._budget_s = budget_s
        self._retries = RetryBudget()

    async def open(self, call: Call, request_id: bytes, share: Share, begin: Callable[[], None]) -> Opened:
        """An answer with status 200. Raises GatewayError for anything else, after all tries.

        When all instances are full it waits its turn, as one of `share`. `begin` is called once, just before an engine
        is asked.
        """
        deadline = time.monotonic() + self._budget_s
        draw = random.random()  # noqa: S311 - a share of traffic
        self._retries.request()
        turn = _Turn(call, request_id, share, begin)
        pause_s = _FIRST_PAUSE_S
        while True:
            leaves = self._leaves(call, draw)
            for number, leaf in enumerate(leaves):
                opened = await self._try_route(turn, leaf, is_last=number == len(leaves) - 1)
                if opened is not None:
                    return opened
            now = time.monotonic()
            if now + pause_s > deadline + turn.waited_s or not (turn.tried or self._just_lost(leaves, now)):
                raise self._unavailable(leaves, turn)
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.6)
            turn.tried.clear()

    def _leaves(self, call: Call, draw: float) -> list[FeedRoute]:
        """Routes to try, in order."""
        route = self._find_route(call.model)
        if route is not None and not route.splits and not route.fallbacks:
            return [route]
        return resolve(self._find_route, call.model, draw, session_of(call))

    async def _try_route(self, turn: _Turn, leaf: FeedRoute, *, is_last: bool) -> Opened | None:
        """An answer of one route; None when it cannot be had there, and another may be asked.

        Raises GatewayError for what is the client's own to mend; also for the engine's faults when there is no other.
        The turn that it takes is given back, unless by `close`.
        """
        opened, is_inside = None, False
        found: FeedRoute | None = leaf
        try:
            call = turn.call.for_route(leaf)
            if not self._turns.try_enter(leaf.id):
                found = await self._wait(turn, leaf)
            is_inside = True
            while found is not None and (asked := self._next(found, call, turn)) is not None:
                name, line, model = asked
                if turn.tries and not self._retries.may_retry(time.monotonic()):
                    turn.last = "too many retries"
                    break
                if not turn.tries:
                    turn.begin()
                turn.tries += 1
                try:
                    opened = await self._try(name, line, model, found, call, turn.request_id)
                    return opened
                except EngineUnreachable as error:
                    self._failed(name, turn, error)
        except GatewayError as error:
            if is_last or not (error.status >= 500 or error.status == 429 or error.code == "unsupported_by_model"):
                raise
            turn.last = error.code
            log.info("route.passed_over", route=leaf.id, model=turn.call.model, code=error.code)
        finally:
            if is_inside and opened is None:
                self._turns.leave(leaf.id)
        return None

    async def _wait(self, turn: _Turn, leaf: FeedRoute) -> FeedRoute | None:
        """The route as it is once there is room in it; None when it has gone meanwhile. Raises GatewayError 429."""
        began = time.monotonic()
        try:
            await self._turns.wait(leaf.id, turn.share)
        finally:
            turn.waited_s += time.monotonic() - began
        return self._find_route(leaf.id)

    def _next(self, leaf: FeedRoute, call: Call, turn: _Turn) -> tuple[str, Line, str] | None:
        """(name, line, name of the model there) of what is to be asked next of a route."""
        if leaf.provider is not None:
            name = outside_name(leaf)
            return None if name in turn.tried else (name, self._pool.outside_line(leaf), leaf.provider.model)
        prefix = prefix_of(call) if len(leaf.targets) > 1 else b""
        target = self._balancer.choose(leaf.targets, prefix, time.monotonic(), turn.tried)
        return None if target is None else (target.instance_id, self._pool.line(target), target.engine_model)

    async def _try(self, name: str, line: Line, model: str, leaf: FeedRoute, call: Call, request_id: bytes) -> Opened:
        self._balancer.started(name)
        try:
            answer = await line.ask(call.path, call.content_type, call.body_for(model), request_id)
        except GatewayError as error:
            self._balancer.finished(name)
            if error.status >= 500:
                self._balancer.erred(name, time.monotonic())
                self._metrics.upstream_failed(call.model, error.code)
            raise
        except BaseException:
            self._balancer.finished(name)
            raise
        opened = Opened(name, answer, leaf, call)
        if answer.status == 200:
            self._balancer.succeeded(name)
            return opened
        self._end(opened)
        if answer.status == 503:
            raise EngineUnreachable("loading", loading=True)
        fault = from_engine(answer.status, answer.body()[:_MAX_ERROR_BYTES])
        if fault.status >= 500:
            self._balancer.erred(name, time.monotonic())
            self._metrics.upstream_failed(call.model, f"status {answer.status}")
        raise fault

    def _failed(self, name: str, turn: _Turn, error: EngineUnreachable) -> None:
        turn.last = "loading" if error.loading else error.reason
        turn.tried.add(name)
        self._balancer.failed(name, time.monotonic())
        self._metrics.upstream_failed(turn.call.model, turn.last)
        log.info(
            "engine.unreachable",
            instance=name,
            model=turn.call.model,
            reason=turn.last,
            request_id=turn.request_id.decode(),
        )

    def close(self, opened: Opened) -> None:
        """Ends an answer: its connection is kept when it was read whole, else cut."""
        self._end(opened)
        self._turns.leave(opened.route.id)

    def _end(self, opened: Opened) -> None:
        opened.answer.close()
        self._balancer.finished(opened.name)

    async def pass_stream(self, opened: Opened, meter: Meter, model: str, pipe: Pipe) -> None:
        """Pass a stream on, event by event, as fast as the client takes it. Raises StreamBroken."""
        opened.answer.pipe(pipe)
        error = await pipe.ended
        if isinstance(error, AnswerLate):
            raise self._broken(model, meter, 504, "engine_timeout", "The engine stopped sending.")
        if error is not None or not meter.done or meter.failed:
            raise self._broken(model, meter, 502, "engine_failed", BROKE_OFF)

    def _broken(self, model: str, meter: Meter, status: int, code: str, message: str) -> StreamBroken:
        self._metrics.upstream_failed(model, "broken stream")
        return StreamBroken(GatewayError(status, code, message), told=meter.failed)

    def _just_lost(self, leaves: list[FeedRoute], now: float) -> bool:
        """A route lost its last instance a moment ago: an engine that restarts is back within seconds."""
        lost = (self._lost_at(leaf.id) for leaf in leaves)
        return any(lost_at is not None and now - lost_at < self._budget_s for lost_at in lost)

    def _unavailable(self, leaves: list[FeedRoute], turn: _Turn) -> GatewayError:
        model = turn.call.model
        route = self._find_route(model)
        if route is None:
            return GatewayError(404, "model_not_found", f"The model '{model}' is no longer served.", param="model")
        if not any(is_ready(leaf) for leaf in leaves) or turn.last == "loading":
            loading = "its engine is loading" if turn.last == "loading" else "no instance is ready"
            reason = next((leaf.reason for leaf in (*leaves, route) if leaf.reason), loading)
            return GatewayError(
                503,
                "model_not_ready",
                f"The model '{model}' is not ready: {reason}.".replace("..", "."),
                retry_after_s=5,
            )
        return GatewayError(
            502, "engine_unreachable", f"No engine of the model '{model}' could be reached.", retry_after_s=2
        )


@dataclass(slots=True)
class _Turn:
    """What one request has tried so far."""

    call: Call
    request_id: bytes
    share: Share
    begin: Callable[[], None]
    waited_s: float = 0.0
    """For a turn: it is not the engines that were slow to answer."""
    tried: set[str] = field(default_factory=set)
    """Names not to be asked again before a pause."""
    tries: int = 0
    last: str = "no ready instance"


class Pipe:
    """From an engine's answer through the meter to the client, without a task of its own: a chunk is written in the
    very call that brought it. While the client takes nothing, the engine is not read."""

    __slots__ = ("_answer", "_begin", "_meter", "_request", "ended", "first_at", "keep_bytes", "kept", "pieces")

    def __init__(self, answer: Answer, meter: Meter, request: Request, begin: Callable[[], None]) -> None:
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
        self.kept: list[bytes] = []
        self.keep_bytes = 0
        """So much more of the pieces goes into `kept`, for a project that has its answers kept."""
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
        if self.keep_bytes > 0:
            self.keep_bytes -= len(out)
            self.kept.append(out)
        request.write(out)
        if request.jammed:
            self._answer.pause()

    def _fail(self, error: AnswerBroken) -> None:
        self.ended.set_result(error)
        self._answer.close()


BROKE_OFF = "The engine broke off in the middle of its answer: it is not complete."
