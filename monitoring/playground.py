"""The playground: a page that asks a model through the gateway, as any client would.

The browser talks to the master only; the master passes a request on with the person's playground key and hands the
gateway's bytes through as they come. Nothing of it is kept, and nothing is logged but the usage that every key has.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import aiohttp
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import admin
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone

from apikeys.models import Project
from apikeys.playground import playground_key, projects_to_try
from deployments.services import feed_routes
from wire.errors import Problem

CONNECT_S = 5.0
ANSWER_S = 3600.0
"""The gateway has its own, shorter deadlines; this one only ends what nobody looks after any more."""
KEY_KNOWN_WITHIN_S = 10.0
"""A key that was made just now reaches the gateways in about a second."""
_TRY_AGAIN_S = 0.2
MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""What is passed on of one answer: the server below does not hold back for a browser that reads slowly."""
_UNPACKED = {"Accept-Encoding": "identity"}
"""A proxy that packs a stream holds it back."""
_SHOWN_HEADERS = ("x-request-id", "retry-after", "x-stokehold-quota-warning")
_SHOWN_PREFIX = "x-ratelimit-"


class NotFromThePage(Problem):
    """A request that the page does not make."""

    code = "invalid_request"
    remedy = "Reload the page and try again."


class SignedOut(Problem):
    code = "signed_out"
    status = 401
    remedy = "Sign in again in another tab, then send it again from here."


class ProjectNotAllowed(Problem):
    code = "project_not_allowed"
    status = 403
    remedy = "Choose another project, or ask an owner of this one to add you to it."


class BrokenOff(Problem):
    code = "broken_off"
    status = 502
    remedy = "Ask again; when it goes on, look at the logs of the gateway and of the model's instances."


class AnswerTooLarge(Problem):
    code = "answer_too_large"
    status = 502
    remedy = "Set max tokens, or send it with a key."


class GatewayAway(Problem):
    code = "gateway_away"
    status = 502
    remedy = "Look at Gateways, or at `./stokehold status`. The master looks for it at STOKEHOLD_GATEWAY_URL."


def page(request: HttpRequest) -> HttpResponse:
    """The page; project members may open it, and people who may make keys."""
    projects = list(projects_to_try(request.user).values("id", "name"))
    return TemplateResponse(
        request,
        "stokehold/playground.html",
        {
            **admin.site.each_context(request),
            "title": "Playground",
            "content_title": "Playground",
            "is_fullwidth": "1",
            "projects": projects,
            "models": _models(),
            "base_url": settings.GATEWAY_BASE_URL,
            "ask_url": reverse("admin:playground_ask"),
            "csrf_cookie": settings.CSRF_COOKIE_NAME,
        },
    )


def _models() -> list[dict[str, Any]]:
    """Public names that can chat, and whether something answers to them now."""
    routes = [route for route in feed_routes() if route.listed and "chat" in route.endpoints]
    return [
        {"name": route.id, "ready": bool(route.targets or route.splits or route.provider), "reason": route.reason}
        for route in routes
    ]


async def ask(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """POST {"project": id, "body": chat request} -> server-sent events.

    First `event: answer` with the gateway's status and headers; then the gateway's own events as they come, or
    `event: body` with the text of an answer that is no stream.
    """
    if request.method != "POST":
        return JsonResponse({"code": "method_not_allowed"}, status=405, headers={"Allow": "POST"})
    try:
        project, body, key = await sync_to_async(_account)(request)
    except Problem as error:
        return JsonResponse(_words(error), status=error.status)
    response = StreamingHttpResponse(
        _relayed(request.user, project, body, key), content_type="text/event-stream; charset=utf-8"
    )
    response["Cache-Control"] = "no-store"
    response["X-Accel-Buffering"] = "no"
    return response


def _account(request: HttpRequest) -> tuple[Project, bytes, str]:
    """On whose account, what is asked, and the key for it."""
    user = request.user
    if not (user.is_active and user.is_staff):
        raise SignedOut("You are signed out.")
    try:
        asked = json.loads(request.body)
        project_id, body = UUID(str(asked["project"])), asked["body"]
    except RequestDataTooBig as error:
        raise NotFromThePage("The request is too large for the playground.", remedy="Send it with a key.") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise NotFromThePage("The request is not what the playground sends.") from error
    if not isinstance(body, dict):
        raise NotFromThePage("The request is not what the playground sends.")
    project = projects_to_try(user).filter(pk=project_id).first()
    if project is None:
        raise ProjectNotAllowed("You may not use this project here, or it is switched off.")
    text = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    return project, text, playground_key(user, project, timezone.now())


# ------------------------------------------------------------------------------------------------ to the gateway


async def _relayed(user: Any, project: Project, body: bytes, key: str) -> AsyncIterator[bytes]:
    """The gateway's answer as events. Its connection is closed when the browser's is: the gateway then cancels."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
    address = f"{settings.GATEWAY_BASE_URL.rstrip('/')}/chat/completions"
    loop = asyncio.get_running_loop()
    known_by = loop.time() + KEY_KNOWN_WITHIN_S
    begun = False
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **_UNPACKED}
                async with session.post(address, data=body, headers=headers) as answer:
                    if answer.status != 401 or loop.time() > known_by:
                        begun = True
                        async for piece in _events(answer):
                            yield piece
                        return
                await asyncio.sleep(_TRY_AGAIN_S)
                key = await sync_to_async(playground_key)(user, project, timezone.now())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        yield _failure(_broken_off(error) if begun else _away(error))
    except Problem as error:
        yield _failure(error)


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    headers = {
        name.lower(): value
        for name, value in answer.headers.items()
        if name.lower() in _SHOWN_HEADERS or name.lower().startswith(_SHOWN_PREFIX)
    }
    yield _event("answer", {"status": answer.status, "headers": headers})
    taken = 0
    parts = []
    streamed = answer.content_type == "text/event-stream"
    async for piece in answer.content.iter_any():
        taken += len(piece)
        if taken > MAX_ANSWER_BYTES:
            raise AnswerTooLarge(f"The answer is larger than {MAX_ANSWER_BYTES // 2**20} MiB.")
        if streamed:
            yield piece
        else:
            parts.append(piece)
    if not streamed:
        yield _event("body", b"".join(parts).decode("utf-8", "replace"))


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _failure(error: Problem) -> bytes:
    """After what may be half an event."""
    return b"\n\n" + _event("failure", _words(error))


def _away(error: Exception) -> Problem:
    return GatewayAway(f"The gateway at {settings.GATEWAY_BASE_URL} does not answer ({_reason(error)}).")


def _broken_off(error: Exception) -> Problem:
    return BrokenOff(f"The gateway broke the answer off ({_reason(error)}).")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _words(error: Problem) -> dict[str, Any]:
    return {"status": error.status, "code": error.code, "message": error.message, "remedy": error.remedy}


urls: list[URLPattern] = [
    path("playground/", admin.site.admin_view(page), name="playground"),
    path("playground/ask", ask, name="playground_ask"),
]
