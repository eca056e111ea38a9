"""Which address serves what: the TLS link port is for nodes only, the plain port for people and programs only.

Also: how large a request may be, and which pages may open a websocket.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_NODE_PATHS = ("/api/v1/join", "/api/v1/join/ca")
NODE_FILE_PREFIXES = ("/api/v1/blobs/", "/api/v1/manifests/")
_NODE_PREFIXES = ("/link/", *NODE_FILE_PREFIXES)
_UNLIMITED_PREFIXES = ("/api/v1/model-versions/", "/admin/models_registry/")
MAX_JOIN_BYTES = 64 * 1024


def is_node_path(path: str) -> bool:
    """Whether `path` is one that nodes call, over TLS pinned to our CA."""
    return path in _NODE_PATHS or path.startswith(_NODE_PREFIXES)


class PortSplit:
    """ASGI: node paths on the link port only, all others on the plain port only.

    Behind a TLS proxy there is one port: node paths are let in when the proxy says that they came over TLS.
    """

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._application(scope, receive, send)
            return
        on_link_port = bool(scope.get("server")) and scope["server"][1] == settings.LINK_PORT
        for_nodes = is_node_path(scope["path"])
        if on_link_port and not for_nodes:
            await _refuse(scope, receive, send, 404, "not_found", "This port serves links of agents and gateways only.")
        elif for_nodes and not on_link_port and not _proxied_over_tls(scope):
            message = f"Nodes are served over TLS only, at {settings.LINK_BASE_URL}."
            await _refuse(scope, receive, send, 421, "link_port_only", message)
        else:
            await self._application(scope, receive, send)


class BodyLimit:
    """ASGI: refuses request bodies above `settings.MAX_BODY_BYTES` (413); uploads of models have no limit here."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_UNLIMITED_PREFIXES):
            await self._application(scope, receive, send)
            return
        limit = MAX_JOIN_BYTES if scope["path"] in _NODE_PATHS else settings.MAX_BODY_BYTES
        if int(_header(scope, b"content-length") or 0) > limit:
            await _refuse(scope, receive, send, 413, "body_too_large", f"A request may have {limit} bytes.")
            return
        await self._application(scope, receive, send)


class SameOrigin:
    """ASGI: a browser may open a websocket from our own pages only (and from CSRF_TRUSTED_ORIGINS)."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and not _own_origin(scope):
            await _close(receive, send)
            return
        await self._application(scope, receive, send)


def _own_origin(scope: Scope) -> bool:
    origin = _header(scope, b"origin")
    if not origin:  # not a browser: it needs a session all the same
        return True
    return urlsplit(origin).netloc == _header(scope, b"host") or origin in settings.CSRF_TRUSTED_ORIGINS


def _proxied_over_tls(scope: Scope) -> bool:
    return settings.LINK_BEHIND_PROXY and _header(scope, b"x-forwarded-proto") in ("https", "wss")


def _header(scope: Scope, wanted: bytes) -> str:
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value.decode("latin-1"))
    return ""


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, code: str, message: str) -> None:
    if scope["type"] == "websocket":
        await _close(receive, send)
        return
    body = {"type": f"urn:stokehold:problem:{code}", "title": code.replace("_", " "), "status": status}
    body |= {"code": code, "detail": message, "remedy": "See the README for which address serves what."}
    headers = [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def _close(receive: Receive, send: Send) -> None:
    """Reject a websocket before it is accepted: the client sees 403."""
    await receive()
    await send({"type": "websocket.close"})


async def refuse_unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI: a websocket to a path that has none."""
    await _close(receive, send)
