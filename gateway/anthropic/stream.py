"""A chat stream as a stream of Anthropic's Messages API. Pure: bytes in, bytes out.

Anthropic's stream: `message_start`; for each block of content `content_block_start`, deltas, `content_block_stop`;
`message_delta` with the reason of the end and the usage; `message_stop`.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from gateway.anthropic.answer import message_id, stop_of, thought_of, usage_fields
from gateway.meter import StreamMeter, Usage

_DATA = re.compile(rb"(?:\A|[\r\n])data: ?([^\r\n]*)")
_ERROR_TYPES = frozenset({"invalid_request_error", "authentication_error", "permission_error", "rate_limit_error"})

Json = dict[str, Any]


class MessagesMeter:
    """Meters a chat stream and turns it into Anthropic's events; used like a `StreamMeter`.

    The engine tells its usage last, so `message_start` says 0 and `message_delta` has the counts.
    """

    __slots__ = ("_block", "_blocks", "_choice", "_finished", "_inner", "_model", "_out", "_started", "_tools")

    def __init__(self, model: str) -> None:
        self._model = model
        self._inner = StreamMeter(model, strip_usage=False)
        self._out: list[bytes] = []
        self._started = self._finished = False
        self._block: tuple[str, int] | None = None
        """(type, index of the tool call or 0) of the block that is open."""
        self._blocks = 0
        """How many were begun."""
        self._tools: dict[int, int] = {}
        """Index of a tool call -> index of its block."""
        self._choice: Json = {}
        """The one that told why it ended."""

    @property
    def done(self) -> bool:
        """The last event was seen: the answer is complete."""
        return self._inner.done

    @property
    def failed(self) -> bool:
        """The engine sent an error event."""
        return self._inner.failed

    @property
    def usage(self) -> Usage | None:
        return self._inner.usage

    def produced(self, prompt_tokens: int) -> Usage:
        """What the engine said was used; else one token a chunk, and the prompt as estimated."""
        return self._inner.produced(prompt_tokens)

    def feed(self, data: bytes) -> bytes:
        """Anthropic's events for the whole events in `data`. Raises EventTooLarge."""
        return self._translate(self._inner.feed(data))

    def end(self) -> bytes:
        """Of what is held back at the end of the stream."""
        return self._translate(self._inner.end())

    def _translate(self, events: bytes) -> bytes:
        for match in _DATA.finditer(events):
            if match[1] == b"[DONE]":
                self._finish()
                continue
            try:
                chunk = orjson.loads(match[1])
            except orjson.JSONDecodeError:
                continue
            if isinstance(chunk, dict):
                self._take(chunk)
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _take(self, chunk: Json) -> None:
        if isinstance(error := chunk.get("error"), dict):
            kind = error.get("type")
            told = {"type": kind if kind in _ERROR_TYPES else "api_error", "message": error.get("message")}
            self._emit("error", error={**told, "code": error.get("code")})
            return
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return
        self._start(chunk.get("id"))
        for choice in choices:
            if not isinstance(choice, dict) or choice.get("index", 0) != 0:
                continue
            if isinstance(delta := choice.get("delta"), dict):
                self._add(delta)
            if choice.get("finish_reason"):
                self._choice = choice

    def _add(self, delta: Json) -> None:
        if thought := thought_of(delta):
            self._open(("thinking", 0), {"type": "thinking", "thinking": "", "signature": ""})
            self._delta({"type": "thinking_delta", "thinking": thought})
        text = delta.get("content") or delta.get("refusal")
        if isinstance(text, str) and text:
            self._open(("text", 0), {"type": "text", "text": ""})
            self._delta({"type": "text_delta", "text": text})
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                self._add_call(call)

    def _add_call(self, call: Json) -> None:
        """A piece of a tool call: the first has its name. Pieces of a call that another has followed keep its index."""
        number = call.get("index")
        number = number if isinstance(number, int) else 0
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        if number not in self._tools:
            name, known_as = function.get("name"), call.get("id")
            block = {
                "type": "tool_use",
                "id": known_as if isinstance(known_as, str) and known_as else f"toolu_{number}",
                "name": name if isinstance(name, str) else "",
                "input": {},
            }
            self._open(("tool_use", number), block)
            self._tools[number] = self._blocks - 1
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments:
            self._delta({"type": "input_json_delta", "partial_json": arguments}, self._tools[number])

    # ---------------------------------------------------------------------------------------- events

    def _start(self, engine_id: object) -> None:
        if self._started:
            return
        self._started = True
        message: Json = {
            "id": message_id(engine_id),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_fields(None),
        }
        self._emit("message_start", message=message)

    def _open(self, block: tuple[str, int], content: Json) -> None:
        if self._block == block:
            return
        self._close()
        self._block = block
        self._emit("content_block_start", index=self._blocks, content_block=content)
        self._blocks += 1

    def _close(self) -> None:
        if self._block is not None:
            self._emit("content_block_stop", index=self._blocks - 1)
            self._block = None

    def _delta(self, delta: Json, index: int | None = None) -> None:
        self._emit("content_block_delta", index=self._blocks - 1 if index is None else index, delta=delta)

    def _finish(self) -> None:
        if self.failed or self._finished:
            return
        self._finished = True
        self._start(None)
        self._close()
        reason, sequence = stop_of(self._choice, has_tools=bool(self._tools))
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        self._emit("message_delta", delta=delta, usage=usage_fields(self.usage))
        self._emit("message_stop")

    def _emit(self, kind: str, **fields: Any) -> None:
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields})))
