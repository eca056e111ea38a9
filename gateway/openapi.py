"""The gateway's API as an OpenAPI 3.1 document: endpoints, headers, errors. Pure, written by hand.

It holds what `gateway.calls.Endpoint` names and no more, so it never tells of an endpoint that is not served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.calls import Endpoint
from gateway.openapi_schemas import answers, ref, requests
from wire.versions import RELEASE

_JSON = "application/json"
_EVENTS = "text/event-stream"

ERRORS = {
    400: "`invalid_request`, `context_length_exceeded`, `unsupported_by_model`, `unsupported_by_engine`: "
    "not JSON, wrong fields, or more than the model can.",
    401: "`invalid_api_key`: missing, malformed, unknown, revoked or expired.",
    403: "`model_not_allowed`, `endpoint_not_allowed`, `network_not_allowed`, `project_inactive`: not with this key.",
    404: "`model_not_found`: no such model, or not for this key.",
    413: "The body is larger than the gateway takes.",
    429: "`rate_limit_exceeded` and others: a limit of the key or its project, or every engine is busy. Wait as long "
    "as `Retry-After` says.",
    502: "`engine_error`, `engine_failed`: the engine failed; only what it delivered was counted.",
    503: "`model_not_ready`, `engine_loading`, `gateway_starting`: nothing serves the model now. See `Retry-After`.",
    504: "`engine_timeout`, `request_timeout`: the engine took too long.",
}


@dataclass(frozen=True, slots=True)
class _About:
    """What the document says of an endpoint."""

    summary: str
    request: str  # schema names
    answer: str
    tag: str
    streams: bool = False
    request_type: str = _JSON
    answer_type: str = _JSON
    words: str = ""


_TAGS = ("OpenAI", "Anthropic", "Audio", "Engines", "Models", "Health")
_CHAT_WORDS = "Streams end with `data: [DONE]`; with `stream_options.include_usage` the last chunk has the usage."
_AUDIO = "multipart/form-data"

ABOUT: dict[str, _About] = {
    "/v1/chat/completions": _About("Chat", "ChatRequest", "Chat", "OpenAI", True, words=_CHAT_WORDS),
    "/v1/completions": _About("Complete a text", "CompletionRequest", "Completion", "OpenAI", True),
    "/v1/embeddings": _About("Embed texts", "EmbeddingRequest", "Embeddings", "OpenAI"),
    "/v1/responses": _About("Responses", "ResponsesRequest", "Response", "OpenAI", True),
    "/v1/audio/transcriptions": _About("Write down speech", "AudioRequest", "Text", "Audio", request_type=_AUDIO),
    "/v1/audio/translations": _About(
        "Write down speech in English", "AudioRequest", "Text", "Audio", request_type=_AUDIO
    ),
    "/v1/audio/speech": _About("Speak a text", "SpeechRequest", "", "Audio", answer_type="audio/mpeg"),
    "/v1/messages": _About(
        "Messages",
        "MessagesRequest",
        "Message",
        "Anthropic",
        True,
        words="Anthropic's API; translated for engines that have only chat. The key may come in `x-api-key`.",
    ),
    "/v1/messages/count_tokens": _About("Count the tokens of messages", "MessagesRequest", "TokenCount", "Anthropic"),
    "/v1/rerank": _About("Order documents by a query", "RerankRequest", "Ranking", "Engines"),
    "/v1/tokenize": _About("Text to token ids", "TokenizeRequest", "Tokens", "Engines"),
    "/v1/detokenize": _About("Token ids to text", "DetokenizeRequest", "Text", "Engines"),
}


def document(server_url: str = "/") -> dict[str, Any]:
    """The whole document; `server_url` is where the gateway answers, without `/v1`."""
    paths: dict[str, Any] = {}
    for endpoint in Endpoint:
        paths[endpoint.value] = {"post": _operation(endpoint.value, ABOUT[endpoint.value])}
    paths |= _models()
    paths |= _probes()
    used = {tag for item in paths.values() for operation in item.values() for tag in operation["tags"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stokehold gateway",
            "version": RELEASE,
            "description": "OpenAI's API over the models of this installation. Bodies pass to the engine as they are, "
            "but for the model's name: parameters not named here work as the engine has them. What a model offers "
            "depends on its engine; another endpoint is refused with 400.",
        },
        "servers": [{"url": server_url}],
        "security": [{"key": []}],
        "tags": [{"name": name} for name in _TAGS if name in used],
        "paths": paths,
        "components": {
            "schemas": requests() | answers(),
            "headers": _headers(),
            "responses": {f"Error{status}": _error(status, "Error") for status in ERRORS}
            | {f"AnthropicError{status}": _error(status, "AnthropicError") for status in ERRORS},
            "parameters": {"RequestId": _request_id()},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key of this installation: `sk-stk-…`."},
                "apiKeyHeader": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(path: str, about: _About) -> dict[str, Any]:
    anthropic = about.tag == "Anthropic"
    content: dict[str, Any] = {about.answer_type: {"schema": ref(about.answer)} if about.answer else {}}
    if about.streams:
        content[_EVENTS] = {
            "schema": {"type": "string", "description": "Server-sent events, as the engine makes them."}
        }
    operation: dict[str, Any] = {
        "operationId": path.removeprefix("/v1/").replace("/", "_"),
        "summary": about.summary,
        "tags": [about.tag],
        "parameters": [{"$ref": "#/components/parameters/RequestId"}],
        "requestBody": {"required": True, "content": {about.request_type: {"schema": ref(about.request)}}},
        "responses": {
            "200": {"description": "The engine's answer.", "headers": _header_refs(_ALWAYS), "content": content},
            **_error_refs(tuple(ERRORS), "AnthropicError" if anthropic else "Error"),
        },
    }
    if about.words:
        operation["description"] = about.words
    if anthropic:
        operation["security"] = [{"key": []}, {"apiKeyHeader": []}]
    return operation


def _models() -> dict[str, Any]:
    """What is answered from memory, with a key."""
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    name["description"] = "A public name; a `/` in it may stay as it is."
    return {
        "/v1/models": {
            "get": _read("list_models", "Models that this key may use", "Models", "Models", (401, 403, 503))
        },
        "/v1/models/{model}": {
            "get": {
                **_read("get_model", "One model", "Model", "Models", (401, 403, 404, 503)),
                "parameters": [name],
            }
        },
    }


def _probes() -> dict[str, Any]:
    """What needs no key."""
    ready = _plain("ready", "Whether it can serve", _JSON)
    ready["responses"]["503"] = {"description": "No state from the master or from disk yet."}
    return {
        "/healthz": {"get": _plain("health", "Whether the process lives", _JSON)},
        "/readyz": {"get": ready},
        "/metrics": {"get": _plain("metrics", "Figures for Prometheus", "text/plain")},
    }


def _read(operation: str, summary: str, answer: str, tag: str, errors: tuple[int, ...]) -> dict[str, Any]:
    found = {"description": "Found.", "headers": _header_refs(("x-request-id",))}
    return {
        "operationId": operation,
        "summary": summary,
        "tags": [tag],
        "responses": {"200": {**found, "content": {_JSON: {"schema": ref(answer)}}}, **_error_refs(errors, "Error")},
    }


def _plain(operation: str, summary: str, content_type: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "tags": ["Health"],
        "security": [],
        "responses": {"200": {"description": "Yes.", "content": {content_type: {}}}},
    }


# ------------------------------------------------------------------------------------------------ headers and errors

_ALWAYS = (
    "x-request-id",
    *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
    "x-stokehold-quota-warning",
)


def _headers() -> dict[str, Any]:
    """As OpenAI sends them, for the tightest limit of key and project; and ours."""
    made: dict[str, Any] = {
        "x-request-id": _header("The client's own, or one made here; name it when you ask for help."),
        "retry-after": _header("Seconds to wait before another try.", "integer"),
        "x-stokehold-quota-warning": _header("Limits of a day or month that are used to 80 % or more."),
    }
    for of in ("requests", "tokens"):
        made[f"x-ratelimit-limit-{of}"] = _header(f"How many {of} a minute are allowed.", "integer")
        made[f"x-ratelimit-remaining-{of}"] = _header(f"How many {of} are left of them.", "integer")
        made[f"x-ratelimit-reset-{of}"] = _header("When the window is whole again, e.g. `6m0s`.")
    return made


def _header(description: str, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


def _header_refs(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _error(status: int, schema: str) -> dict[str, Any]:
    names = ("x-request-id", "retry-after") if status in (429, 503) else ("x-request-id",)
    content = {_JSON: {"schema": ref(schema)}}
    return {"description": ERRORS[status], "headers": _header_refs(names), "content": content}


def _error_refs(statuses: tuple[int, ...], schema: str) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{schema}{status}"} for status in statuses}


def _request_id() -> dict[str, Any]:
    schema = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}
    return {"name": "x-request-id", "in": "header", "required": False, "schema": schema}
