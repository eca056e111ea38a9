"""One request to one engine: choose, try, try again before the first byte, pass bytes on as they come.

Tries are repeated only for engines that cannot be reached or are still loading, only before anything went to the
client, within `RETRY_BUDGET_S`; cancelling the task (the client is gone) ends tries and cuts the
engine's connection at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import structlog

from gateway.calls import Call, prefix_of
from gateway.errors import EngineUnreachable, GatewayError, from_engine
from gateway.meter import EventTooLarge, StreamMeter, Usage, read_answer
from gateway.metrics import Metrics
from gateway.routing import Balancer
from gateway.upstream import Pool
from wire.feed import FeedRoute, Target

log = structlog.get_logger(__name__)

RETRY_BUDGET_S = 10.0
"""How long a request waits for a restarting engine when there is no other."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5
MAX_ANSWER_BYTES = 256 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024

Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine's answer whose headers have come. Give it to `Relay.close`."""

    target: Target
    response: aiohttp.ClientResponse

    @property
    def is_stream(self) -> bool:
        return self.response.content_type == "text/event-stream"


class StreamBroken(Exception):
    """A stream ended before it was complete; `error` is for the client."""

    def __init__(self, error: GatewayError, *, told: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.told = told
        """The engine's own error event has gone to the client already."""


class Relay:
    """Opens and passes on engines' answers. `find_route` gives the route of a model as it is now."""

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

    async def open(self, call: Call, request_id: str) -> Opened:
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
                        request_id=request_id,
                    )
                    tried.add(target.instance_id)
                    continue
            if time.monotonic() + pause_s > deadline or not (tried or self._just_lost(call.model, time.monotonic())):
                raise self._unavailable(call.model, route, last, bool(tried))
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.6)
            tried.clear()

    async def _try(self, target: Target, call: Call, request_id: str) -> Opened:
        self._balancer.started(target.instance_id)
        try:
            response = await self._pool.post(
                target, call.endpoint.value, call.body_for(target.engine_model), request_id
            )
        except BaseException:
            self._balancer.finished(target.instance_id)
            raise
        opened = Opened(target, response)
        if response.status == 200:
            self._balancer.succeeded(target.instance_id)
            return opened
        try:
            body = await response.content.read(_MAX_ERROR_BYTES)
        except (aiohttp.ClientError, TimeoutError):
            body = b""
        finally:
            self.close(opened)
        if response.status == 503:
            raise EngineUnreachable("loading", loading=True)
        error = from_engine(response.status, body)
        if error.status >= 500:
            self._metrics.upstream_failed(call.model, f"status {response.status}")
        raise error

    def close(self, opened: Opened) -> None:
        """Ends an answer: given back to the pool when it was read whole, else cut."""
        self._pool.release(opened.response)
        self._balancer.finished(opened.target.instance_id)

    async def read_whole(self, opened: Opened, model: str) -> tuple[bytes, Usage | None]:
        """(body under the public name, usage) of an answer that is no stream. Raises GatewayError 502, 504."""
        try:
            body = await opened.response.read()
        except TimeoutError as error:
            raise GatewayError(504, "engine_timeout", "The engine did not finish its answer in time.") from error
        except aiohttp.ClientError as error:
            self._metrics.upstream_failed(model, "broken answer")
            raise GatewayError(502, "engine_failed", "The engine broke off in the middle of its answer.") from error
        if len(body) > MAX_ANSWER_BYTES:
            raise GatewayError(502, "engine_failed", "The engine's answer is too large.")
        return read_answer(body, model)

    async def pass_stream(self, opened: Opened, meter: StreamMeter, model: str, write: Write) -> None:
        """Pass a stream on, event by event, as fast as the client takes it. Raises StreamBroken."""
        content = opened.response.content
        try:
            while data := await content.readany():
                if out := meter.feed(data):
                    await write(out)
            if out := meter.end():
                await write(out)
        except TimeoutError as error:
            raise self._broken(model, meter, 504, "engine_timeout", "The engine stopped sending.") from error
        except (aiohttp.ClientError, EventTooLarge) as error:
            raise self._broken(model, meter, 502, "engine_failed", _BROKE_OFF) from error
        if not meter.done or meter.failed:
            raise self._broken(model, meter, 502, "engine_failed", _BROKE_OFF)

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


_BROKE_OFF = "The engine broke off in the middle of its answer: it is not complete."
