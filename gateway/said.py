"""What a stream of events said, put together: for the request log. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.meter import Dialect


def said_in(stream: bytes, dialect: Dialect) -> dict[str, Any]:
    """Texts by where they belong: `{"0.content": "Hello", "0.tool_calls.0.arguments": "{...}"}`; and the errors.

    Pieces of one text are joined first, because a word to be redacted may be spread over several events.
    """
    parts: dict[str, list[str]] = {}
    errors: list[Any] = []
    for event in _events(stream):
        if event.get("error"):
            errors.append(event["error"])
        for where, text in _texts(event, dialect):
            parts.setdefault(where, []).append(text)
    said: dict[str, Any] = {where: "".join(texts) for where, texts in parts.items()}
    return {**said, "errors": errors} if errors else said


def _events(stream: bytes) -> Iterator[dict[str, Any]]:
    for line in stream.splitlines():
        if line.startswith((b"data:", b"error:")):
            try:
                event = orjson.loads(line.partition(b":")[2])
            except orjson.JSONDecodeError:
                continue
            if isinstance(event, dict):
                yield event


def _texts(event: dict[str, Any], dialect: Dialect) -> Iterator[tuple[str, str]]:
    if dialect is Dialect.RESPONSES:
        if str(event.get("type", "")).endswith(".delta") and isinstance(event.get("delta"), str):
            yield f"{event.get('output_index', 0)}.{str(event['type'])[9:-6]}", event["delta"]
    elif dialect is Dialect.ANTHROPIC:
        delta = event.get("delta")
        if event.get("type") == "content_block_delta" and isinstance(delta, dict):
            yield from _leaves(delta, str(event.get("index", 0)))
        elif event.get("type") == "content_block_start" and isinstance(event.get("content_block"), dict):
            yield from _leaves(event["content_block"], str(event.get("index", 0)))
    else:
        for choice in event.get("choices") or ():
            if isinstance(choice, dict):
                index = str(choice.get("index", 0))
                yield from _leaves(choice.get("delta"), index)
                if isinstance(choice.get("text"), str):
                    yield f"{index}.text", choice["text"]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text within; items of a list by their `index`, else by their place."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in ("type", "role"):
                yield from _leaves(item, f"{path}.{name}")
    elif isinstance(value, list):
        for place, item in enumerate(value):
            index = item.get("index", place) if isinstance(item, dict) else place
            yield from _leaves(item, f"{path}.{index}")
