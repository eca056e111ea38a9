"""What is asked: request bodies. Pure: bytes in, values or GatewayError out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from gateway.errors import GatewayError
from gateway.quota import Ask

DEFAULT_COMPLETION_TOKENS = 512
"""What a request without max_tokens reserves for its answer."""
_CHARACTERS_PER_TOKEN = 4
_MESSAGE_TOKENS = 4  # of the template around each message
_PREFIX_CHARACTERS = 512


class Endpoint(StrEnum):
    """Paths that are relayed to engines."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request."""

    endpoint: Endpoint
    model: str
    stream: bool
    wants_usage: bool
    """The client asked for the usage chunk of a stream."""
    data: dict[str, Any]
    raw: bytes

    def body_for(self, engine_model: str) -> bytes:
        """What the engine gets: the client's own bytes where nothing has to differ."""
        if self.model == engine_model and (not self.stream or self.wants_usage):
            return self.raw
        data = {**self.data, "model": engine_model}
        if self.stream:
            data["stream_options"] = {**(data.get("stream_options") or {}), "include_usage": True}
        try:
            return orjson.dumps(data)
        except TypeError as error:  # it reads deeper nesting than it writes
            raise _bad("The body is nested too deeply.", None) from error


def parse_call(endpoint: Endpoint, raw: bytes) -> Call:
    """Check as much of a request as the gateway needs; the rest is the engine's to judge. Raises GatewayError 400."""
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _bad(f"The body is not valid JSON: {error}.", None) from error
    if not isinstance(data, dict):
        raise _bad("The body must be a JSON object.", None)
    model = _required(data, "model")
    if not isinstance(model, str) or not model:
        raise _bad("'model' must be a non-empty string.", "model")
    if endpoint is Endpoint.CHAT:
        messages = _required(data, "messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
            raise _bad("'messages' must be a non-empty list of objects.", "messages")
    else:
        name = "prompt" if endpoint is Endpoint.COMPLETIONS else "input"
        if not isinstance(_required(data, name), str | list):
            raise _bad(f"'{name}' must be a string or a list.", name)
    stream = data.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _bad("'stream' must be true or false.", "stream")
    if stream and endpoint is Endpoint.EMBEDDINGS:
        raise _bad("Embeddings cannot be streamed.", "stream")
    options = data.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _bad("'stream_options' must be an object.", "stream_options")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        value = data.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise _bad(f"'{name}' must be a positive integer.", name)
    wants_usage = bool(options and options.get("include_usage") is True)
    return Call(endpoint, model, bool(stream), wants_usage, data, raw)


def estimate(call: Call, max_context_tokens: int | None) -> Ask:
    """What the request may use at most, from its text (about four characters a token) and max_tokens."""
    prompt = prompt_tokens(call)
    if call.endpoint is Endpoint.EMBEDDINGS:
        return Ask(prompt, 0, True)
    bound = call.data.get("max_completion_tokens") or call.data.get("max_tokens")
    completion = (bound or DEFAULT_COMPLETION_TOKENS) * (call.data.get("n") or 1)
    if max_context_tokens is not None:
        completion = min(completion, max(1, max_context_tokens - prompt) * (call.data.get("n") or 1))
    return Ask(prompt, completion, bound is not None)


def prompt_tokens(call: Call) -> int:
    """Estimated tokens of the prompt."""
    if call.endpoint is Endpoint.CHAT:
        messages = call.data["messages"]
        characters = sum(_characters(message.get("content")) for message in messages)
        return characters // _CHARACTERS_PER_TOKEN + _MESSAGE_TOKENS * len(messages)
    value = call.data["prompt" if call.endpoint is Endpoint.COMPLETIONS else "input"]
    if isinstance(value, list) and value and isinstance(value[0], int):
        return len(value)
    if isinstance(value, list) and value and isinstance(value[0], list):
        return sum(len(item) for item in value if isinstance(item, list))
    return _characters(value) // _CHARACTERS_PER_TOKEN + 1


def prefix_of(call: Call) -> bytes:
    """The beginning of the prompt, by which requests of one conversation are told."""
    if call.endpoint is not Endpoint.CHAT:
        value = call.data["prompt" if call.endpoint is Endpoint.COMPLETIONS else "input"]
        return str(value[:_PREFIX_CHARACTERS]).encode("utf-8", "replace")
    parts = []
    for message in call.data["messages"][:2]:
        content = message.get("content")
        parts.append(content[:_PREFIX_CHARACTERS] if isinstance(content, str) else str(content)[:_PREFIX_CHARACTERS])
    return "\0".join(parts).encode("utf-8", "replace")


def _required(data: dict[str, Any], name: str) -> Any:
    if data.get(name) is None:
        raise _bad(f"You must provide '{name}'.", name)
    return data[name]


def _bad(message: str, param: str | None) -> GatewayError:
    return GatewayError(400, "invalid_request", message, param=param)


def _characters(content: object) -> int:
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, list):
        return 0
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return sum(len(text) for text in texts if isinstance(text, str))
