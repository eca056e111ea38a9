"""An engine that does what a test tells it: answers as llama.cpp and vLLM give them, delays, failures, cuts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


def chunk(text: str | None, model: str, *, finish: str | None = None, role: bool = False) -> dict[str, Any]:
    """One chunk of a chat stream."""
    delta: dict[str, Any] = {"role": "assistant", "content": None} if role else {}
    if text is not None:
        delta["content"] = text
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}


def event(data: dict[str, Any] | str, end: str = "\n\n") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return f"data: {text}{end}".encode()


def _must_call(body: dict[str, Any]) -> bool:
    return bool(body.get("tools")) and body.get("tool_choice") == "required"


def _call(body: dict[str, Any]) -> dict[str, Any]:
    """A call of the first tool, every argument a text."""
    function = body["tools"][0]["function"]
    arguments = dict.fromkeys(function["parameters"]["properties"], "Paris")
    made = {"name": function["name"], "arguments": json.dumps(arguments)}
    return {"id": "call_1", "type": "function", "function": made}


def _call_pieces(call: dict[str, Any]) -> list[dict[str, Any]]:
    """As a stream tells it: the name first, then the arguments in pieces."""
    function, text = call["function"], call["function"]["arguments"]
    first = {"index": 0, **call, "function": {**function, "arguments": ""}}
    return [first, *({"index": 0, "function": {"arguments": text[at : at + 5]}} for at in range(0, len(text), 5))]


def _call_chunk(piece: dict[str, Any], model: str) -> dict[str, Any]:
    made = chunk(None, model)
    made["choices"][0]["delta"] = {"tool_calls": [piece]}
    return made


@dataclass
class FakeEngine:
    """Change its attributes at any time; the next request does as they say."""

    model: str = "engine-model"
    words: tuple[str, ...] = ("Hello", " ", "wörld", " ", "✓")
    prompt_tokens: int = 11
    cached_tokens: int = 3
    delay_s: float = 0.0
    """Before the headers."""
    pause_s: float = 0.0
    """Between chunks."""
    gate: asyncio.Event | None = None
    """Waited for before the headers."""
    fail: tuple[int, dict[str, Any] | str] | None = None
    """Answer this status and body instead."""
    fail_times: int = -1
    """How many times to fail; -1: always."""
    cut_after: int | None = None
    """Break the connection after this many chunks (or before an answer that is no stream)."""
    line_end: str = "\n\n"
    piece_bytes: int | None = None
    """Send a stream in pieces of this size, wherever they break."""
    without_done: bool = False
    endless: Callable[[int], bytes] | None = None
    """Makes the events of a stream that never ends."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    aborted: list[float] = field(default_factory=list)
    active: int = 0
    sent_bytes: int = 0
    port: int = 0

    @property
    def completion_tokens(self) -> int:
        return len(self.words)

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.active += 1
        try:
            return await self._answer(request, body)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.append(asyncio.get_running_loop().time())
            raise
        finally:
            self.active -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(self.delay_s)
        if self.fail is not None and self.fail_times != 0:
            self.fail_times -= 1
            status, content = self.fail
            if isinstance(content, str):
                return web.Response(status=status, text=content)
            return web.json_response(content, status=status)
        if body.get("stream"):
            return await self._stream(request, body)
        if self.cut_after is not None:
            self._cut(request)
        if request.path.endswith("/embeddings"):
            count = len(body["input"]) if isinstance(body["input"], list) else 1
            data = [{"object": "embedding", "index": i, "embedding": [0.25, 0.5]} for i in range(count)]
            usage = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}
            return web.json_response({"object": "list", "data": data, "model": self.model, "usage": usage})
        text = "".join(self.words)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if request.path.endswith("/chat/completions") and _must_call(body):
            choice |= {"message": {"role": "assistant", "content": None, "tool_calls": [_call(body)]}}
            choice["finish_reason"] = "tool_calls"
            kind = "chat.completion"
        elif request.path.endswith("/chat/completions"):
            choice["message"] = {"role": "assistant", "content": text}
            kind = "chat.completion"
        else:
            choice["text"] = text
            kind = "text_completion"
        answer = {"id": "c-1", "object": kind, "created": 1, "model": self.model, "choices": [choice]}
        return web.json_response({**answer, "usage": self.usage()})

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        if self.endless is not None:
            number = 0
            while True:
                data = self.endless(number)
                await response.write(data)
                self.sent_bytes += len(data)
                number += 1
        data = b""
        for number, piece in enumerate(self._events(body)):
            if self.cut_after is not None and number >= self.cut_after:
                self._cut(request)
            if self.piece_bytes is None:
                await response.write(piece)
                await asyncio.sleep(self.pause_s)
            else:
                data += piece
        for start in range(0, len(data), self.piece_bytes or 1):
            await response.write(data[start : start + (self.piece_bytes or 1)])
            await asyncio.sleep(0)
        await response.write_eof()
        return response

    def _events(self, body: dict[str, Any]) -> list[bytes]:
        chunks: list[dict[str, Any] | str] = [chunk(None, self.model, role=True)]
        if _must_call(body):
            chunks += [_call_chunk(piece, self.model) for piece in _call_pieces(_call(body))]
        else:
            chunks += [chunk(word, self.model) for word in self.words]
        chunks.append(chunk(None, self.model, finish="tool_calls" if _must_call(body) else "stop"))
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append({**chunk(None, self.model), "choices": [], "usage": self.usage()})
        if not self.without_done:
            chunks.append("[DONE]")
        return [event(item, self.line_end) for item in chunks]

    @staticmethod
    def _cut(request: web.Request) -> None:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("cut")


@asynccontextmanager
async def running_engine(engine: FakeEngine, *, port: int = 0) -> AsyncIterator[FakeEngine]:
    """Serve it on loopback; `engine.port` is set."""
    app = web.Application(client_max_size=1 << 30)
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        app.router.add_post(path, engine.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=2048)  # hundreds connect at once
        await site.start()
        engine.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        yield engine
    finally:
        await runner.cleanup()
