"""A project's guard: a service of its own that sees each request first, and lets it pass, changes it, or stops it.

It is asked once, before quotas and engines, with `{"project", "key", "model", "endpoint", "request_id", "request"}`;
`request` is the client's JSON, or null for what is none (audio). It answers 200 with one of

    {"action": "allow"}
    {"action": "block", "message": "why"}
    {"action": "replace", "request": {...}}      for the same model

Anything else, or no answer in time, stops the request with 503, unless the project has chosen to go on without it.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import orjson
import structlog

from gateway.access import Caller
from gateway.calls import Call, parse_call
from gateway.errors import GatewayError
from wire.feed import Guard

log = structlog.get_logger(__name__)

_MOST_ANSWER_BYTES = 32 * 1024 * 1024
_CONNECTIONS = 200


class Guards:
    """Owner of the connections to guards."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self.passed_over = 0
        """Requests that went on without their guard's word."""

    async def ask(self, guard: Guard, caller: Caller, call: Call, request_id: bytes) -> Call:
        """The call as the guard lets it pass. Raises GatewayError 400 (stopped), 503 (no word from it)."""
        question = {
            "project": {"id": caller.project.project.id, "name": caller.project.project.name},
            "key": f"sk-stk-{caller.key.key.id}",
            "model": call.model,
            "endpoint": call.endpoint.value,
            "request_id": request_id.decode(),
            "request": call.data or None,
        }
        try:
            return _obeyed(await self._answer(guard, question), call)
        except (aiohttp.ClientError, TimeoutError, ValueError, TypeError, OSError) as error:
            reason = str(error) or type(error).__name__
            log.warning("guard.no_word", project=caller.project.project.id, reason=reason, goes_on=guard.fail_open)
            if guard.fail_open:
                self.passed_over += 1
                return call
            raise GatewayError(
                503,
                "guard_unavailable",
                "The guard of this project does not answer as it should; its requests wait for it. Try again shortly.",
                retry_after_s=5,
            ) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _answer(self, guard: Guard, question: dict[str, Any]) -> Any:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
            self._session = aiohttp.ClientSession(connector=connector)
        timeout = aiohttp.ClientTimeout(total=guard.timeout_ms / 1000)
        headers = {"content-type": "application/json"}
        async with self._session.post(
            guard.url, data=orjson.dumps(question), headers=headers, timeout=timeout, allow_redirects=False
        ) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            body = await answer.content.read(_MOST_ANSWER_BYTES)
            while more := await answer.content.read(_MOST_ANSWER_BYTES):
                body += more
                if len(body) > _MOST_ANSWER_BYTES:
                    raise ValueError("its answer is too large")
            return orjson.loads(body)


def _obeyed(answer: Any, call: Call) -> Call:
    """Raises GatewayError when the guard stops the request, ValueError for what is no answer."""
    action = answer.get("action") if isinstance(answer, dict) else None
    if action == "allow":
        return call
    if action == "block":
        message = answer.get("message")
        why = message if isinstance(message, str) and message else "It is against the rules of this project."
        raise GatewayError(400, "content_policy_violation", f"The request was stopped: {why[:1000]}")
    if action == "replace" and call.data:
        try:
            changed = parse_call(call.endpoint, orjson.dumps(answer.get("request")))
        except GatewayError as error:
            raise ValueError(f"the request in its answer is none: {error.message}") from error
        if changed.model != call.model:
            raise ValueError("it named another model")
        return changed
    raise ValueError("its answer is neither allow, block nor replace")
