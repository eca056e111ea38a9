"""Errors that a client of the gateway gets, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re

import orjson

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_closed",
}

_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"`]+", re.IGNORECASE)
_HOST_PORT = re.compile(
    r"\b(?:\d{1,3}(?:\.\d{1,3}){3}|localhost|[\w-]+(?:\.[\w-]+)+)(?::\d{2,5})\b|\b\d{1,3}(?:\.\d{1,3}){3}\b"
)
_PATH = re.compile(r"(?<![\w/])(?:~|\.{0,2})/(?:[\w.+@-]+/)+[\w.+@-]*|\b[A-Za-z]:\\[^\s'\"]+")
_MAX_MESSAGE = 2000
_TOO_LONG = re.compile(
    r"maximum (?:context|model) length"  # vLLM; SGLang for prompt and answer together
    r"|longer than the model's context length"  # SGLang
    r"|`inputs` tokens \+ `max_new_tokens` must be <=|`inputs` must have less than \d+ tokens"  # TGI
    r"|too large to process\. increase the physical batch size",  # llama.cpp, embeddings and reranking
    re.IGNORECASE,
)
_NO_SUCH_PATH = frozenset({"", "Not Found", "File Not Found", "Method Not Allowed"})
"""What engines answer on a path that they do not have (FastAPI's and llama.cpp's words)."""
_NO_SUCH_MODEL = re.compile(r"^The model `.*` does not exist|^model .* not found", re.IGNORECASE)
"""vLLM, SGLang; llama.cpp as a router."""


class GatewayError(Exception):
    """What the client is told. `status` is the HTTP status, `code` is stable, `retry_after_s` becomes Retry-After."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        type_: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.type = type_ or _TYPES.get(status, "server_error")
        self.retry_after_s = retry_after_s
        self.headers = headers

    def body(self) -> bytes:
        """JSON of the answer."""
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )

    def event(self) -> bytes:
        """The same as a server-sent event, for a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"


def gateway_starting() -> GatewayError:
    """No state: neither from the master nor from disk, or this gateway was revoked."""
    return GatewayError(
        503, "gateway_starting", "The gateway has nothing to serve from its master. Try again shortly.", retry_after_s=2
    )


class EngineUnreachable(Exception):
    """A try on one target failed before its first byte, in a way that allows another try."""

    def __init__(self, reason: str, *, loading: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.loading = loading
        """The engine answers, but has no model yet (503)."""


def scrub(text: str) -> str:
    """`text` from an engine without URLs, addresses and file paths: clients learn nothing of the machines behind."""
    text = _URL.sub("[address]", text[:_MAX_MESSAGE])
    text = _HOST_PORT.sub("[address]", text)
    return _PATH.sub("[path]", text)


def from_engine(status: int, body: bytes) -> GatewayError:
    """The error that an engine's answer `status`, `body` means to the client.

    4xx are the client's own and keep their status and (scrubbed) words; 401 and 403 are ours to mend, so 502.
    """
    message, kind = _engine_words(body)
    message = scrub(message)
    if kind == "exceed_context_size_error" or _TOO_LONG.search(message):
        return GatewayError(400, "context_length_exceeded", message, param="messages")
    if status == 501 or (status in (404, 405) and message in _NO_SUCH_PATH):
        told = message if status == 501 else ""
        return GatewayError(400, "unsupported_by_engine", told or "The engine of this model cannot do that.")
    if status == 404 and _NO_SUCH_MODEL.search(message):  # the name is the gateway's: nothing a client could mend
        return GatewayError(502, "engine_error", "The engine does not serve the model under the name it should have.")
    if status == 429:
        return GatewayError(
            429, "engine_overloaded", message or "The engine is busy. Try again shortly.", retry_after_s=1
        )
    if status == 503:
        return GatewayError(
            503, "engine_loading", "The engine is loading its model. Try again shortly.", retry_after_s=2
        )
    if status in (401, 403, 407):  # its words may hold the key that was refused
        return GatewayError(502, "engine_error", f"The engine refused the gateway's own key ({status}).")
    if 400 <= status < 500:
        return GatewayError(status, "invalid_request", message or f"The engine refused the request ({status}).")
    return GatewayError(502, "engine_error", f"The engine failed ({status})" + (f": {message}" if message else "."))


def _engine_words(body: bytes) -> tuple[str, str]:
    """(message, type) from the shapes that llama.cpp, vLLM, TGI and SGLang use."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", ""
    if not isinstance(data, dict):
        return "", ""
    error = data.get("error", data)
    if isinstance(error, str):
        return error, str(data.get("error_type", ""))
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or ""
        return message if isinstance(message, str) else orjson.dumps(message).decode(), str(error.get("type", ""))
    return "", ""
