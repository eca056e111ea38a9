"""A request of Anthropic's Messages API as one of OpenAI's chat. Pure: values in, values or GatewayError out.

Sources: Anthropic's API reference (Messages), OpenAI's (Chat). A field that Anthropic does not know passes as it is, so
that parameters of the engine's own (`min_p`, `chat_template_kwargs`) work here as they do for chat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from gateway.errors import GatewayError

_TRANSLATED = frozenset(
    {"messages", "system", "tools", "tool_choice", "stop_sequences", "output_config", "output_format", "metadata"}
)
_WITHOUT_MEANING = frozenset(
    {"thinking", "service_tier", "anthropic_version", "container", "context_management", "n", "n_cmpl", "best_of"}
)
"""For Anthropic's own service, or about what an open model's template decides. Dropped: some engines refuse what they
do not know."""
_BOUNDS = ("max_completion_tokens", "max_output_tokens", "n_predict")
_NOT_POSSIBLE = ("mcp_servers",)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_DROPPED_BLOCKS = frozenset({"redacted_thinking"})

Json = dict[str, Any]


def chat_request(data: Json) -> Json:
    """The body for /v1/chat/completions. Raises GatewayError 400 for what a chat cannot say."""
    for name in _NOT_POSSIBLE:
        if data.get(name):
            raise _unsupported(f"'{name}'", name)
    chat = {name: value for name, value in data.items() if name not in _TRANSLATED | _WITHOUT_MEANING}
    chat["messages"] = list(_messages(data))
    if (stops := data.get("stop_sequences")) is not None:
        chat["stop"] = stops
    if data.get("tools"):
        chat["tools"] = [_tool(tool) for tool in _objects(data["tools"], "tools")]
    if (choice := data.get("tool_choice")) is not None:
        chat.update(_tool_choice(choice))
    if (answer_format := _format(data)) is not None:
        chat["response_format"] = answer_format
    user = data["metadata"].get("user_id") if isinstance(data.get("metadata"), dict) else None
    if isinstance(user, str) and user:
        chat["user"] = user
    return chat


def counting_request(data: Json) -> Json:
    """The body for /v1/chat/completions whose usage tells how many tokens the messages are: with the shortest answer.

    The engine reads the prompt for it, and finds it in its cache when the messages themselves come.
    """
    chat = {name: value for name, value in chat_request(data).items() if name not in _BOUNDS}
    return {**chat, "max_tokens": 1}


# ------------------------------------------------------------------------------------------------ messages


def _messages(data: Json) -> Iterator[Json]:
    if system := _plain_text(data.get("system"), "system"):
        yield {"role": "system", "content": system}
    for message in data["messages"]:
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise _bad("'role' of a message must be 'user' or 'assistant'.", "messages")
        if isinstance(content, str):
            yield {"role": role, "content": content}
        elif role == "assistant":
            yield _assistant(_objects(content, "messages"))
        elif role == "system":
            yield {"role": role, "content": _plain_text(content, "messages")}
        else:
            yield from _user(_objects(content, "messages"))


def _user(blocks: Iterable[Json]) -> Iterator[Json]:
    """Results of tools become messages of their own, which must follow the calls at once; the rest comes after them."""
    parts: list[Json] = []
    for block in blocks:
        if block.get("type") == "tool_result":
            text, pictures = _tool_result(block)
            yield {"role": "tool", "tool_call_id": _name(block, "tool_use_id"), "content": text}
            parts += pictures
        else:
            parts.append(_part(block))
    if len(parts) == 1 and parts[0]["type"] == "text":
        yield {"role": "user", "content": parts[0]["text"]}
    elif parts:
        yield {"role": "user", "content": parts}


def _tool_result(block: Json) -> tuple[str, list[Json]]:
    """(text, pictures): a tool's message in a chat is text."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        return content or "", []
    parts = [_part(item) for item in _objects(content, "messages")]
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return text, [part for part in parts if part["type"] != "text"]


def _part(block: Json) -> Json:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": _name(block, "text", empty=True)}
    source = block.get("source")
    if kind == "image" and isinstance(source, dict):
        return {"type": "image_url", "image_url": {"url": _picture(source)}}
    if kind == "document" and isinstance(source, dict) and source.get("type") == "text":
        title = block.get("title")
        text = _name(source, "data", empty=True)
        return {"type": "text", "text": f"{title}\n\n{text}" if isinstance(title, str) and title else text}
    raise _unsupported(f"a block of type '{kind}' in a user's message", "messages")


def _picture(source: Json) -> str:
    if source.get("type") == "base64":
        return f"data:{_name(source, 'media_type')};base64,{_name(source, 'data')}"
    if source.get("type") == "url":
        return _name(source, "url")
    raise _unsupported(f"a picture from '{source.get('type')}'", "messages")


def _assistant(blocks: Iterable[Json]) -> Json:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            texts.append(_name(block, "text", empty=True))
        elif kind == "thinking":
            thoughts.append(_name(block, "thinking", empty=True))
        elif kind == "tool_use":
            given = block.get("input")
            function = {"name": _name(block, "name"), "arguments": _json({} if given is None else given)}
            calls.append({"id": _name(block, "id"), "type": "function", "function": function})
        elif kind not in _DROPPED_BLOCKS:
            raise _unsupported(f"a block of type '{kind}' in an assistant's message", "messages")
    message: Json = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _plain_text(content: object, param: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    blocks = _objects(content, param)
    if any(block.get("type") != "text" for block in blocks):
        raise _unsupported(f"'{param}' with blocks that are no text", param)
    return "\n".join(_name(block, "text", empty=True) for block in blocks)


# ------------------------------------------------------------------------------------------------ tools, formats


def _tool(tool: Json) -> Json:
    if tool.get("type") not in (None, "custom"):  # what Anthropic itself runs or has trained its models on
        raise _unsupported(f"the tool type '{tool['type']}'", "tools")
    function: Json = {"name": _name(tool, "name"), "parameters": tool.get("input_schema") or {"type": "object"}}
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _tool_choice(choice: object) -> Json:
    if not isinstance(choice, dict):
        raise _bad("'tool_choice' must be an object.", "tool_choice")
    kind = choice.get("type")
    made: Json = {}
    if kind == "tool":
        made["tool_choice"] = {"type": "function", "function": {"name": _name(choice, "name")}}
    elif isinstance(kind, str) and kind in _CHOICES:
        made["tool_choice"] = _CHOICES[kind]
    else:
        raise _bad("'tool_choice.type' must be auto, any, tool or none.", "tool_choice")
    if choice.get("disable_parallel_tool_use") is True:
        made["parallel_tool_calls"] = False
    return made


def _format(data: Json) -> Json | None:
    """Structured output: `output_config.format`, and its name in the beta, `output_format`."""
    config = data.get("output_config")
    wanted = config.get("format") if isinstance(config, dict) else None
    wanted = wanted or data.get("output_format")
    if not wanted:
        return None
    if (
        not isinstance(wanted, dict)
        or wanted.get("type") != "json_schema"
        or not isinstance(wanted.get("schema"), dict)
    ):
        raise _bad("The output format must be of type 'json_schema' with a 'schema'.", "output_config")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted["schema"], "strict": True}}


# ------------------------------------------------------------------------------------------------ reading values


def _objects(value: object, param: str) -> list[Json]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _bad(f"'{param}' must hold a text or a list of objects.", param)
    return value


def _name(source: Json, name: str, *, empty: bool = False) -> str:
    value = source.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise _bad(f"'{name}' must be a{'' if empty else ' non-empty'} string.", "messages")
    return value


def _json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:  # it reads deeper nesting than it writes
        raise _bad("The body is nested too deeply.", None) from error


def _bad(message: str, param: str | None) -> GatewayError:
    return GatewayError(400, "invalid_request", message, param=param)


def _unsupported(what: str, param: str) -> GatewayError:
    return GatewayError(
        400,
        "unsupported_by_model",
        f"The engine of this model has no Messages API of its own, and {what} cannot be translated for it.",
        param=param,
    )
