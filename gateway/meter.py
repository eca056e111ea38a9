"""What a request used, read from the engine's answer on its way to the client. Pure: bytes in, bytes out.

A stream is passed on as it comes, whole server-sent events at a time. An event is parsed only when it must be: the
first (for the model's name), one with `usage`, one with an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import orjson

from gateway.errors import GatewayError, from_engine

MAX_EVENT_BYTES = 8 * 1024 * 1024
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")
_DATA = re.compile(rb"^(?:data|error): ?(.*?)\r?$", re.MULTILINE)
_MARKS = ((b'"delta":{"', 1), (b'"text":"', 1), (b'"text":""', -1))
"""What a chunk with a piece of text holds, counted when an engine has not told its usage."""
_TYPED_MARKS = ((b'"type":"text_delta"', 1), (b'"type":"input_json_delta"', 1), (b'"type":"thinking_delta"', 1))
_RESPONSE_MARKS = ((b'"type":"response.output_text.delta"', 1), (b'"type":"response.reasoning_text.delta"', 1))
_SPACED_MARKS = ((b'"delta": {"', 1), (b'"text": "', 1), (b'"text": ""', -1))


class Dialect(StrEnum):
    """Whose API an endpoint speaks."""

    OPENAI = "openai"
    RESPONSES = "responses"  # OpenAI's, of 2025: typed events
    ANTHROPIC = "anthropic"


_DONE = b"[DONE]"
_DONE_LINE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\]")
"""The model's own text may hold the mark, too, but not at the start of a line: in JSON its new lines are escaped."""
_ENDS = {
    Dialect.OPENAI: (_DONE,),
    Dialect.RESPONSES: (b'"response.completed"', b'"response.incomplete"', b'"response.failed"', _DONE),
    Dialect.ANTHROPIC: (b'"message_stop"',),
}
"""What the last event of a complete stream holds."""
_DIALECT_MARKS = {Dialect.RESPONSES: _RESPONSE_MARKS, Dialect.ANTHROPIC: _TYPED_MARKS}


@dataclass(slots=True)
class Usage:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Meter(Protocol):
    """Follows one stream of server-sent events on its way to the client."""

    @property
    def done(self) -> bool:
        """The last event was seen: the answer is complete."""

    @property
    def failed(self) -> bool:
        """The engine sent an error event."""

    @property
    def usage(self) -> Usage | None:
        """As the engine told it, so far."""

    def feed(self, data: bytes) -> bytes:
        """What of `data`, and of what was held back, is for the client now. Raises EventTooLarge."""

    def end(self) -> bytes:
        """What is held back at the end of the stream."""

    def produced(self, prompt_tokens: int) -> Usage:
        """What was used; where the engine has not told, the prompt as estimated and one token a chunk."""


class EventTooLarge(Exception):
    """A server-sent event has no end within MAX_EVENT_BYTES."""


def usage_of(data: Any) -> Usage | None:
    """`usage` of an answer or chunk; None when it holds none."""
    usage = data.get("usage") if isinstance(data, dict) else None
    if not isinstance(usage, dict):
        return None
    if "input_tokens" in usage or "output_tokens" in usage:
        return _typed_usage(usage)
    details = usage.get("prompt_tokens_details")
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _typed_usage(usage: dict[str, Any]) -> Usage:
    """Of Responses, where `input_tokens` holds the cached ones, and of Anthropic, where they are told apart."""
    prompt = _count(usage.get("input_tokens"))
    details = usage.get("input_tokens_details")
    if isinstance(details, dict):
        return Usage(prompt, _count(details.get("cached_tokens")), _count(usage.get("output_tokens")))
    cached = _count(usage.get("cache_read_input_tokens"))
    written = _count(usage.get("cache_creation_input_tokens"))
    return Usage(prompt + cached + written, cached, _count(usage.get("output_tokens")))


def read_answer(body: bytes, model: str) -> tuple[bytes, Usage | None]:
    """(body under the public model name, usage) of a whole answer."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body, None
    usage = usage_of(data)
    if usage is not None and "timings" in data:
        usage.completion_tokens = _of_all_choices(data.get("choices"), usage.completion_tokens)
    if isinstance(data, dict) and data.get("model", model) != model:
        data["model"] = model
        body = orjson.dumps(data)
    return body, usage


def _of_all_choices(choices: object, first: int) -> int:
    """Completion tokens of all choices. llama.cpp (only it tells `timings`) counts the first alone: the others are
    taken to have as many characters a token."""
    if not isinstance(choices, list) or len(choices) < 2:
        return first
    sizes = [_characters(choice) for choice in choices]
    return first + sum(max(1, -(-first * size // max(1, sizes[0]))) for size in sizes[1:])


def _characters(choice: object) -> int:
    """Of what the model made."""
    if not isinstance(choice, dict):
        return 0
    said = choice.get("message")
    made = said if isinstance(said, dict) else choice
    fields = (made.get(name) for name in ("content", "reasoning_content", "tool_calls", "text"))
    return sum(len(field if isinstance(field, str) else orjson.dumps(field)) for field in fields if field)


class StreamMeter:
    """Follows one stream of server-sent events.

    `strip_usage`: the client did not ask for the usage chunk, so it does not get it.
    """

    __slots__ = (
        "_dialect",
        "_ends",
        "_first",
        "_marks",
        "_model",
        "_names",
        "_strip",
        "_tail",
        "_tokens",
        "_told",
        "done",
        "failed",
        "usage",
    )

    def __init__(self, model: str, *, strip_usage: bool, dialect: Dialect = Dialect.OPENAI) -> None:
        self._dialect = dialect
        self._ends = _ENDS[dialect]
        self.usage: Usage | None = None
        self.done = False
        """The last event was seen: the answer is complete."""
        self.failed = False
        """The engine sent an error event."""
        self._model = model
        self._strip = strip_usage
        self._tail = b""
        self._first = True
        self._names: tuple[tuple[bytes, bytes], ...] = ()
        self._tokens = 0
        self._told = False
        """A chunk with nothing but the usage has come."""
        self._marks = _DIALECT_MARKS.get(dialect, _MARKS)

    def feed(self, data: bytes) -> bytes:
        """The part of `data` (and of what was held back) to pass on now. Raises EventTooLarge."""
        fresh = max(0, len(self._tail) - 3)
        if self._tail:
            data = self._tail + data
        if data.endswith(b"\n\n"):
            self._tail = b""
        else:
            end = _last_boundary(data, fresh)
            self._tail = data[end:]
            data = data[:end]
            if len(self._tail) > MAX_EVENT_BYTES:
                raise EventTooLarge
            if not data:
                return b""
        if self._first or b'"usage"' in data or b'"error"' in data or b"error:" in data:
            data = self._by_event(data)
        elif self._names:
            data = self._rename(data)
        for mark, sign in self._marks:
            self._tokens += sign * data.count(mark)
        for mark in self._ends:
            if mark in data and (mark is not _DONE or _DONE_LINE.search(data)):
                self.done = True
        return data

    def end(self) -> bytes:
        """What is held back at the end of the stream (an engine that leaves out the last blank line)."""
        tail, self._tail = self._tail, b""
        return self.feed(tail + b"\n\n") if tail.strip() else b""

    def produced(self, prompt_tokens: int) -> Usage:
        """What the engine said was used; else one token a chunk, and the prompt as estimated."""
        if self.usage is not None:
            if not self.done:  # told along the way: what came since is not in it
                self.usage.completion_tokens = max(self.usage.completion_tokens, self._tokens)
            if not self.usage.prompt_tokens:  # llama.cpp leaves it out of some streams of messages
                self.usage.prompt_tokens = prompt_tokens
            return self.usage
        return Usage(prompt_tokens=0 if self._first else prompt_tokens, completion_tokens=self._tokens)

    def _by_event(self, data: bytes) -> bytes:
        kept, start = [], 0
        for match in _BOUNDARY.finditer(data):
            event = data[start : match.end()]
            start = match.end()
            if self._first or b'"usage"' in event or b'"error"' in event or event.startswith(b"error:"):
                event = self._look(event)
            if event:
                kept.append(self._rename(event))
        return b"".join(kept)

    def _look(self, event: bytes) -> bytes:
        """Read one event; what is left of it for the client."""
        match = _DATA.search(event)
        if match is None:
            return event
        try:
            chunk = orjson.loads(match[1])
        except orjson.JSONDecodeError:
            return event
        if not isinstance(chunk, dict):
            return event
        if chunk.get("error") or event.startswith(b"error:"):
            self.failed = True
            status = chunk["error"].get("code") if isinstance(chunk.get("error"), dict) else None
            return error_event(self._dialect, from_engine(status if isinstance(status, int) else 500, match[1]))
        if self._dialect is not Dialect.OPENAI:
            self._look_typed(chunk)
            return event
        if self._first and "choices" in chunk:
            self._first = False
            self._learn(chunk.get("model", self._model))
            self._marks = _SPACED_MARKS if b'"choices": ' in event else _MARKS
            if _only_says_role(chunk["choices"]):
                self._tokens -= 1
        usage = usage_of(chunk)
        if usage is None:
            return event
        if chunk.get("choices"):
            self.usage = usage
            return event
        if self._told and self.usage is not None:  # llama.cpp tells each of n choices apart
            usage.completion_tokens += self.usage.completion_tokens
        self.usage, self._told = usage, True
        return b"" if self._strip else event

    def _look_typed(self, chunk: dict[str, Any]) -> None:
        """An event of Responses or Anthropic: the model's name and the usage are of the object within."""
        self._first = False
        inner = chunk.get("response") or chunk.get("message")
        if isinstance(inner, dict) and isinstance(inner.get("model"), str):
            self._learn(inner["model"])
        usage = usage_of(inner) or usage_of(chunk)
        if usage is None:
            return
        if self.usage is not None:  # message_delta tells what message_start could not know, and repeats nothing
            usage.prompt_tokens = usage.prompt_tokens or self.usage.prompt_tokens
            usage.cached_tokens = usage.cached_tokens or self.usage.cached_tokens
        self.usage = usage

    def _learn(self, name: object) -> None:
        if name == self._model:
            return
        old, new = orjson.dumps(name), orjson.dumps(self._model)
        self._names = ((b'"model":' + old, b'"model":' + new), (b'"model": ' + old, b'"model": ' + new))

    def _rename(self, data: bytes) -> bytes:
        """Inside a JSON string its quotes would be escaped: what matches is a key of the chunk."""
        for old, new in self._names:
            data = data.replace(old, new)
        return data


def error_body(dialect: Dialect, error: GatewayError) -> bytes:
    """JSON of an error as clients of this API expect it."""
    if dialect is not Dialect.ANTHROPIC:
        return error.body()
    kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": error.message, "code": error.code}})


def error_event(dialect: Dialect, error: GatewayError) -> bytes:
    """The same as a server-sent event, for a stream that has begun."""
    if dialect is Dialect.OPENAI:
        return error.event()
    if dialect is Dialect.RESPONSES:
        data = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        return b"event: error\ndata: %b\n\n" % orjson.dumps(data)
    return b"event: error\ndata: %b\n\n" % error_body(dialect, error)


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _only_says_role(choices: Any) -> bool:
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return False
    delta = choices[0].get("delta")
    return isinstance(delta, dict) and "role" in delta and not any(v for k, v in delta.items() if k != "role")


def _last_boundary(data: bytes, start: int) -> int:
    """Index after the last blank line that ends after `start`, 0 without one."""
    found = ((data.rfind(mark, start), len(mark)) for mark in (b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"))
    return max((at + length for at, length in found if at >= 0), default=0)


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
