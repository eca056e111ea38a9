"""A whole chat answer as a message of Anthropic's. Pure: bytes in, bytes or GatewayError out."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.errors import GatewayError
from gateway.meter import Usage, usage_of

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def message_of(body: bytes, model: str) -> tuple[bytes, Usage | None]:
    """(Anthropic's message under the public model name, usage). Raises GatewayError 502 for what is no chat answer."""
    try:
        data = orjson.loads(body)
        choice = data["choices"][0]
        said = choice["message"]
        blocks = _blocks(said)
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise GatewayError(502, "engine_failed", "The engine did not answer with a chat completion.") from error
    usage = usage_of(data)
    reason, sequence = stop_of(choice, has_tools=any(block["type"] == "tool_use" for block in blocks))
    message = {
        "id": message_id(data.get("id")),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage_fields(usage),
    }
    return orjson.dumps(message), usage


def token_count_of(body: bytes) -> tuple[bytes, Usage | None]:
    """(answer of /v1/messages/count_tokens, usage), from a chat answer: the engine's own count of that very prompt.
    Raises GatewayError 502."""
    try:
        usage = usage_of(orjson.loads(body))
    except orjson.JSONDecodeError:
        usage = None
    if usage is None:
        raise GatewayError(502, "engine_failed", "The engine did not tell how many tokens the prompt has.")
    return orjson.dumps({"input_tokens": usage.prompt_tokens}), usage


def _blocks(said: dict[str, Any]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if thought := thought_of(said):
        blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
    text = said.get("content") or said.get("refusal")
    if isinstance(text, str) and text:
        blocks.append({"type": "text", "text": text})
    for number, call in enumerate(said.get("tool_calls") or ()):
        function = call["function"]
        blocks.append(
            {
                "type": "tool_use",
                "id": call.get("id") or f"toolu_{number}",
                "name": function["name"],
                "input": _arguments(function.get("arguments")),
            }
        )
    return blocks


def _arguments(given: object) -> object:
    """The object that a tool's arguments mean. Text that is none (cut off, or the model's mistake) is kept as Anthropic
    advises for invalid JSON: under one key."""
    if isinstance(given, dict):
        return given
    if not given:
        return {}
    try:
        found = orjson.loads(str(given))
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": str(given)}


def thought_of(said: dict[str, Any]) -> str:
    """Reasoning, by the names that llama.cpp, vLLM and SGLang give it; empty without."""
    thought = said.get("reasoning_content") or said.get("reasoning")
    return thought if isinstance(thought, str) else ""


def stop_of(choice: dict[str, Any], *, has_tools: bool) -> tuple[str, str | None]:
    """(stop_reason, stop_sequence). vLLM and SGLang tell the sequence as `stop_reason` or `matched_stop`."""
    finish = choice.get("finish_reason")
    reason = _STOP_REASONS.get(finish, "end_turn") if isinstance(finish, str) else "end_turn"
    if has_tools and reason == "end_turn":  # some engines say "stop" after tool calls
        return "tool_use", None
    sequence = choice.get("stop_reason") or choice.get("matched_stop")
    if reason == "end_turn" and isinstance(sequence, str):
        return "stop_sequence", sequence
    return reason, None


def usage_fields(usage: Usage | None) -> dict[str, int]:
    """Anthropic counts what was read from the cache apart."""
    usage = usage or Usage()
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def message_id(engine_id: object) -> str:
    return f"msg_{engine_id}" if isinstance(engine_id, str) and engine_id else "msg_0"
