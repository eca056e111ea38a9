"""The HTTP side. Finds out what is asked, and lets an `Exchange` or a small answer do it."""

from __future__ import annotations

import functools
import itertools
import re
import secrets
from typing import Any
from urllib.parse import unquote

import orjson

from gateway.access import authenticate, client_address, credentials, find_route, visible_routes
from gateway.answers import JSON, send_error
from gateway.calls import ENDPOINTS
from gateway.errors import GatewayError, gateway_starting
from gateway.exchange import Exchange
from gateway.http.request import Header, Request
from gateway.openapi import document
from gateway.service import Service, instant
from wire.feed import FeedRoute
from wire.versions import RELEASE

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_MODELS = "/v1/models"
_OPENAPI, _METRICS = "/openapi.json", "/metrics"
_PATHS = frozenset({"/", "/healthz", "/readyz", _METRICS, _OPENAPI, _MODELS})
_METRICS_TYPE: Header = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_ALLOWED_HEADERS = (
    b"authorization, content-type, x-request-id, openai-organization, openai-project, x-api-key, anthropic-version"
)
_EXPOSED_HEADERS = b"x-request-id, retry-after, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens"


class Monitor:
    """What is for the operator only, on a port of its own."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> None:
        if request.path == "/metrics" and request.method in ("GET", "HEAD"):
            request.answer(200, [_METRICS_TYPE], self._service.metrics_text())
        else:
            send_error(request, GatewayError(404, "not_found", "Only /metrics is here."), [])


class App:
    """Handler of all requests of one gateway process."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._process = secrets.token_hex(8).encode()
        self._count = itertools.count(1)
        self._origins = frozenset(origin.encode() for origin in service.settings.cors_origins)

    async def __call__(self, request: Request) -> None:
        """Answer one request."""
        headers = request.headers
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else self._next_id()
        common: list[Header] = [(b"x-request-id", request_id)]
        if self._origins and (origin := headers.get(b"origin")) is not None:
            common += self._cors(origin)
            if request.method == "OPTIONS" and b"access-control-request-method" in headers:
                request.answer(204, common, b"")
                return
        endpoint = ENDPOINTS.get(request.path)
        try:
            if endpoint is None:
                self._small(request, common)
            elif request.method != "POST":
                raise _not_allowed(b"POST")
            else:
                await Exchange(self._service, endpoint, request, common, request_id).run()
        except GatewayError as error:
            send_error(request, error, common)

    def _next_id(self) -> bytes:
        """Unique over all processes."""
        return b"req-%b-%x" % (self._process, next(self._count))

    def _small(self, request: Request, common: list[Header]) -> None:
        """Everything that is answered from memory."""
        path = request.path
        if (path not in _PATHS or (path == _METRICS and self._service.settings.metrics_apart)) and not path.startswith(
            _MODELS + "/"
        ):
            raise GatewayError(404, "not_found", f"There is nothing at {path[:200]}. The API is below /v1/.")
        if request.method not in ("GET", "HEAD"):
            raise _not_allowed(b"GET")
        status, content_type, body = self._look_up(path, request)
        request.answer(status, [(b"content-type", content_type), *common], body)

    def _look_up(self, path: str, request: Request) -> tuple[int, bytes, bytes]:
        service = self._service
        if path == _MODELS or path.startswith(_MODELS + "/"):
            return 200, JSON[1], self._models(unquote(path[len(_MODELS) + 1 :]), request)
        if path == "/healthz":
            return 200, JSON[1], b'{"status":"ok"}'
        if path == "/readyz":
            if service.state is None:
                return 503, JSON[1], b'{"status":"waiting","reason":"no state from the master or from disk yet"}'
            connected = service.feed is not None and service.feed.connected
            return 200, JSON[1], orjson.dumps({"status": "ready", "master_connected": connected})
        if path == _METRICS:
            return 200, _METRICS_TYPE[1], service.metrics_text()
        if path == _OPENAPI:
            return 200, JSON[1], _openapi()
        about = {
            "service": "stokehold gateway",
            "release": RELEASE,
            "api": "/v1",
            "models": _MODELS,
            "openapi": _OPENAPI,
        }
        return 200, JSON[1], orjson.dumps(about)

    def _models(self, name: str, request: Request) -> bytes:
        """The list, or one model. Raises GatewayError 401, 403, 404, 503."""
        state = self._service.state
        if state is None:
            raise gateway_starting()
        address = client_address(request, self._service.settings.trusted_proxies)
        caller = authenticate(state, credentials(request.headers), instant().unix_s, address=address)
        if name:
            return orjson.dumps(_model(find_route(state, caller, name)))
        return orjson.dumps({"object": "list", "data": [_model(route) for route in visible_routes(state, caller)]})

    def _cors(self, origin: bytes) -> list[Header]:
        if b"*" not in self._origins and origin not in self._origins:
            return [(b"vary", b"Origin")]
        return [
            (b"access-control-allow-origin", b"*" if b"*" in self._origins else origin),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", _ALLOWED_HEADERS),
            (b"access-control-expose-headers", _EXPOSED_HEADERS),
            (b"access-control-max-age", b"600"),
            (b"vary", b"Origin"),
        ]


@functools.cache
def _openapi() -> bytes:
    return orjson.dumps(document())


def _model(route: FeedRoute) -> dict[str, Any]:
    model: dict[str, Any] = {
        "id": route.id,
        "object": "model",
        "created": route.created,
        "owned_by": "stokehold",
        "ready": bool(route.targets),
    }
    if route.max_context_tokens is not None:
        model["max_model_len"] = route.max_context_tokens
    return model


def _not_allowed(allow: bytes) -> GatewayError:
    return GatewayError(
        405, "method_not_allowed", f"Only {allow.decode()} is understood here.", headers=((b"allow", allow),)
    )


def bad_request(status: int, why: str) -> tuple[list[Header], bytes]:
    """(headers, body) of an answer to what is no request of ours."""
    code = "internal_error" if status >= 500 else "invalid_request"
    return [JSON], GatewayError(status, code, why).body()
