"""What a request may use at most, before the engine has told: from its text and its bounds. Pure.

About four characters make a token (OpenAI's rule of thumb for English); a list of token ids is counted exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from gateway.calls import ANSWERS, BOUNDS, OF_MESSAGES, Call, Endpoint
from gateway.quotas.subjects import Ask
from wire.feed import Price

DEFAULT_COMPLETION_TOKENS = 512
"""What a request without a bound reserves for its answer."""
_CHARACTERS_PER_TOKEN = 4
_MESSAGE_TOKENS = 4  # of the template around each message
_IMAGE_TOKENS = 1024  # OpenAI's tiles and most vision encoders: several hundred to some thousand
_BYTES_PER_TOKEN_OF_AUDIO = 4000
_PREFIX_CHARACTERS = 512
_OBEYED_BY_CHAT = ("max_completion_tokens", "max_tokens", "n_predict")
_OBEYED = {"responses": ("max_output_tokens",), "messages": ("max_tokens",)}
"""Fields that bound an answer by the definition of its group of endpoints."""
_SPEC_FIELDS = ("tools", "functions", "response_format", "text", "json_schema", "grammar")
_AUDIO = (Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS)
_NOT_COMPUTED = (Endpoint.TOKENIZE, Endpoint.DETOKENIZE, Endpoint.COUNT_TOKENS)
_SESSION_FIELDS = ("prompt_cache_key", "user", "session_id")


def estimate(call: Call, max_context_tokens: int | None, price: Price | None = None) -> Ask:
    """Tokens to reserve."""
    prompt = prompt_tokens(call)
    if not call.generates:
        return Ask(prompt, 0, True, price)
    bound = _bound(call)
    completion = bound or DEFAULT_COMPLETION_TOKENS
    if max_context_tokens is not None:
        completion = min(completion, max(1, max_context_tokens - prompt))
    return Ask(prompt, completion * answers(call), bound is not None, price)


def prompt_tokens(call: Call) -> int:
    """Estimated tokens of the prompt."""
    data, endpoint = call.data, call.endpoint
    if endpoint in _NOT_COMPUTED and not call.translated:
        return 0  # nothing is computed by the model
    if endpoint in OF_MESSAGES:
        return _messages(data["messages"]) + _text(data.get("system")) + _spec(data)
    if endpoint in _AUDIO:
        return len(call.raw) // _BYTES_PER_TOKEN_OF_AUDIO + 1
    if endpoint is Endpoint.RESPONSES:
        given = data["input"]
        inputs = _messages(given) if isinstance(given, list) else _text(given) + _MESSAGE_TOKENS
        return inputs + _text(data.get("instructions")) + _spec(data)
    if endpoint is Endpoint.RERANK:
        documents = data.get("documents") or data.get("texts") or []
        return sum(_text(data["query"]) + _text(item) + _MESSAGE_TOKENS for item in documents)
    value = data["prompt" if endpoint is Endpoint.COMPLETIONS else "input"]
    return sum(_prompt(item) for item in _prompts(value))


def session_of(call: Call) -> bytes:
    """The session or user that the client names; empty without."""
    for name in _SESSION_FIELDS:
        if isinstance(value := call.data.get(name), str) and value:
            return value[:_PREFIX_CHARACTERS].encode("utf-8", "replace")
    metadata = call.data.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None  # Anthropic's
    return user[:_PREFIX_CHARACTERS].encode("utf-8", "replace") if isinstance(user, str) else b""


def prefix_of(call: Call) -> bytes:
    """What tells requests of one conversation: its session when the client names it, else the prompt's beginning."""
    if session := session_of(call):
        return session
    data = call.data
    messages = data.get("messages")
    if isinstance(messages, list):
        parts = [_start(data.get("system"))]
        for message in messages[:4]:
            parts.append(_start(message.get("content")))
            if message.get("role") == "user":
                break  # what follows differs from turn to turn
        return "\0".join(parts).encode("utf-8", "replace")
    return _start(data.get("prompt", data.get("input", ""))).encode("utf-8", "replace")


def _start(value: object) -> str:
    if isinstance(value, list):
        value = value[:8]
    return (value if isinstance(value, str) else str(value))[:_PREFIX_CHARACTERS]


def _bound(call: Call) -> int | None:
    """Most tokens of one completion, as whichever engine reads the request: of several bounds each engine obeys another
    (llama.cpp `n_predict`, -1 for none). None: some engine would know no bound."""
    data, found = call.data, 0.0
    fields = _OBEYED.get(call.endpoint.group, _OBEYED_BY_CHAT)
    is_obeyed = False
    for name in BOUNDS:
        value = data.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            return None
        found = max(found, value)
        is_obeyed = is_obeyed or name in fields
    return int(found) if is_obeyed else None


def answers(call: Call) -> int:
    """How many completions the engine makes."""
    data, wanted = call.data, 1
    for name in ANSWERS:
        if name in data and isinstance(value := data[name], int | float):
            wanted = max(wanted, int(value))
    if call.endpoint is Endpoint.COMPLETIONS:
        wanted *= max(1, len(_prompts(data["prompt"])))
    return wanted


def _prompts(value: object) -> list[Any]:
    """A text, a list of texts, a list of token ids, or a list of such lists: one item a prompt."""
    if not isinstance(value, list) or (value and isinstance(value[0], int)):
        return [value]
    return value


def _prompt(value: object) -> int:
    return len(value) if isinstance(value, list) and value and isinstance(value[0], int) else _text(value) + 1


def _messages(messages: Iterable[Any]) -> int:
    total = 0
    for message in messages:
        total += _MESSAGE_TOKENS
        if isinstance(message, dict):
            total += _text(message.get("content"))
            if "tool_calls" in message:
                total += _size(message["tool_calls"])
    return total


def _spec(data: dict[str, Any]) -> int:
    """Tools and schemas go into the prompt as text."""
    total = 0
    for name in _SPEC_FIELDS:
        if data.get(name):
            total += _size(data[name])
    return total


def _size(value: Any) -> int:
    try:
        return len(orjson.dumps(value)) // _CHARACTERS_PER_TOKEN
    except TypeError:  # nested too deeply: refused when the body is made
        return 0


def _text(content: object) -> int:
    if isinstance(content, str):
        return len(content) // _CHARACTERS_PER_TOKEN
    if isinstance(content, list):
        return sum(_part(part) for part in content)
    return 0 if content is None else _size(content)


def _part(part: object) -> int:
    if not isinstance(part, dict):
        return _text(part) if isinstance(part, str) else 0
    if isinstance(text := part.get("text"), str):
        return len(text) // _CHARACTERS_PER_TOKEN
    if "image" in str(part.get("type", "")):
        return _IMAGE_TOKENS
    return _size(part)
