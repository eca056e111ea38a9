"""What is asked: endpoints and request bodies. Pure: bytes in, values or GatewayError out."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple, Self

import orjson

from gateway import multipart
from gateway.anthropic.answer import message_of, token_count_of
from gateway.anthropic.request import chat_request, counting_request
from gateway.anthropic.stream import MessagesMeter
from gateway.errors import GatewayError
from gateway.meter import Dialect, Meter, StreamMeter, Usage, read_answer
from wire.feed import FeedRoute

_JSON = b"application/json"
_FORM = b"multipart/form-data"


class Endpoint(StrEnum):
    """Paths that are relayed to engines, as clients know them.

    What each is like stands in attributes of its members: a look-up by member in a dictionary costs more than the rest
    of a check.
    """

    group: str
    """Of `wire.feed.ENDPOINT_GROUPS`: what an engine has, or has not, as a whole."""
    dialect: Dialect
    """Whose API it is: how usage, streams and errors look."""
    content: str
    """Field of the body that holds what the model reads, where one field does."""
    engine_path: str
    """Where engines take it."""
    generates: bool
    """The engine makes tokens for it."""

    def __new__(
        cls,
        path: str,
        group: str = "",
        content: str = "",
        generates: bool = False,
        dialect: Dialect = Dialect.OPENAI,
        engine_path: str = "",
    ) -> Self:
        member = str.__new__(cls, path)
        member._value_ = path
        member.group, member.content, member.generates, member.dialect = group, content, generates, dialect
        member.engine_path = engine_path or path
        return member

    CHAT = "/v1/chat/completions", "chat", "", True
    COMPLETIONS = "/v1/completions", "completions", "prompt", True
    EMBEDDINGS = "/v1/embeddings", "embeddings", "input"
    RESPONSES = "/v1/responses", "responses", "input", True, Dialect.RESPONSES
    MESSAGES = "/v1/messages", "messages", "", True, Dialect.ANTHROPIC
    COUNT_TOKENS = "/v1/messages/count_tokens", "messages", "", False, Dialect.ANTHROPIC
    RERANK = "/v1/rerank", "rerank"
    # llama.cpp, vLLM and TGI have these two at the root.
    TOKENIZE = "/v1/tokenize", "tokenize", "", False, Dialect.OPENAI, "/tokenize"
    DETOKENIZE = "/v1/detokenize", "tokenize", "", False, Dialect.OPENAI, "/detokenize"
    TRANSCRIPTIONS = "/v1/audio/transcriptions", "audio"
    TRANSLATIONS = "/v1/audio/translations", "audio"
    SPEECH = "/v1/audio/speech", "audio", "input"


ENDPOINTS = {
    **{endpoint.value: endpoint for endpoint in Endpoint},
    "/v1/reranking": Endpoint.RERANK,  # llama.cpp's name
    "/rerank": Endpoint.RERANK,  # Cohere's and vLLM's
}
"""Public path -> endpoint."""

_FORMS = (Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS)
_STREAMED = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, *_FORMS)
_USAGE_ASKED_FOR = (Endpoint.CHAT, Endpoint.COMPLETIONS)
"""Streams of these tell their usage only when asked to."""
OF_MESSAGES = (Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.COUNT_TOKENS)
BOUNDS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")
"""Fields by which one engine or another bounds a completion; `n_predict` is llama.cpp's and wins there."""
ANSWERS = ("n", "n_cmpl", "best_of")
"""Fields that ask for several completions; `n_cmpl` is llama.cpp's."""
_CHAT_PATH = Endpoint.CHAT.engine_path
_ONE_ANSWER = (Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.COUNT_TOKENS)
_POSITIVE = ("max_tokens", "max_completion_tokens", "max_output_tokens", *ANSWERS)
_OFFERS = {
    "chat": "chat",
    "completions": "complete texts",
    "embeddings": "make embeddings",
    "responses": "answer /v1/responses",
    "messages": "answer /v1/messages",
    "rerank": "rerank",
    "tokenize": "tokenize",
    "audio": "work on audio",
}


class Call(NamedTuple):
    """A checked request."""

    endpoint: Endpoint
    model: str
    stream: bool
    wants_usage: bool
    """The client gets the usage chunk of a stream: it asked for it, or it comes anyway."""
    data: dict[str, Any]
    raw: bytes
    content_type: bytes = _JSON
    as_sent: bool = True
    """The client's own bytes can go to the engine: they name one model only, however they are read."""
    translated: bool = False
    """`data` is a chat request made of one to Anthropic's API: the engine's answer is turned back."""

    @property
    def generates(self) -> bool:
        """The engine makes tokens for it."""
        return self.endpoint.generates or self.translated

    @property
    def path(self) -> str:
        """Where engines take it."""
        return _CHAT_PATH if self.translated else self.endpoint.engine_path

    def for_route(self, route: FeedRoute) -> Call:
        """The call as this route can take it: messages become chat where its engine has only that. Raises GatewayError
        400 when it cannot."""
        group = self.endpoint.group
        if group in route.endpoints:
            return self
        if group == "messages" and "chat" in route.endpoints:
            data = (chat_request if self.endpoint is Endpoint.MESSAGES else counting_request)(self.data)
            return self._replace(data=data, as_sent=False, wants_usage=False, translated=True)
        offers = ", ".join(_OFFERS[name] for name in route.endpoints if name in _OFFERS) or "nothing"
        raise GatewayError(
            400,
            "unsupported_by_model",
            f"The model '{route.id}' cannot {_OFFERS[group]}. What it can: {offers}.",
            param="model",
        )

    def body_for(self, engine_model: str) -> bytes:
        """What the engine gets: the client's own bytes where nothing has to differ. Raises GatewayError 400."""
        if self.content_type != _JSON:
            return multipart.with_field(self.raw, self.content_type, "model", engine_model)
        ask_for_usage = self.stream and not self.wants_usage
        if self.model == engine_model and not ask_for_usage and self.as_sent:
            return self.raw
        data = {**self.data, "model": engine_model}
        if ask_for_usage:
            data["stream_options"] = {**(data.get("stream_options") or {}), "include_usage": True}
        try:
            return orjson.dumps(data)
        except TypeError as error:  # it reads deeper nesting than it writes
            raise _bad("The body is nested too deeply.", None) from error

    def meter(self) -> Meter:
        """For the stream that answers it."""
        if self.translated:
            return MessagesMeter(self.model)
        return StreamMeter(self.model, strip_usage=not self.wants_usage, dialect=self.endpoint.dialect)

    def read_answer(self, body: bytes) -> tuple[bytes, Usage | None]:
        """(body for the client, usage) of a whole JSON answer. Raises GatewayError 502 for what cannot be one."""
        if not self.translated:
            return read_answer(body, self.model)
        return message_of(body, self.model) if self.endpoint is Endpoint.MESSAGES else token_count_of(body)

    def bounded_to(self, completion_tokens: int) -> Call:
        """The same call, each of its answers held to so many tokens."""
        name = "max_output_tokens" if self.endpoint is Endpoint.RESPONSES else "max_tokens"
        rest = {field: value for field, value in self.data.items() if field not in BOUNDS}
        return self._replace(data={**rest, name: completion_tokens}, as_sent=False)


def parse_call(endpoint: Endpoint, raw: bytes, content_type: bytes = _JSON) -> Call:
    """Check as much of a request as the gateway needs; the rest is the engine's to judge. Raises GatewayError 400."""
    if endpoint in _FORMS:
        return _parse_form(endpoint, raw, content_type)
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _bad(f"The body is not valid JSON: {error}.", None) from error
    if not isinstance(data, dict):
        raise _bad("The body must be a JSON object.", None)
    model = data.get("model")
    if not isinstance(model, str) or not model:
        model = _model(_required(data, "model"))
    _check_content(endpoint, data)
    stream = data.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _bad("'stream' must be true or false.", "stream")
    if stream and endpoint not in _STREAMED:
        raise _bad("This endpoint does not stream.", "stream")
    options = data.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _bad("'stream_options' must be an object.", "stream_options")
    for name in _POSITIVE:
        if name in data:
            value = data[name]
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise _bad(f"'{name}' must be a positive integer.", name)
    if endpoint in _ONE_ANSWER and any((data.get(name) or 1) > 1 for name in ANSWERS):
        raise _bad("This endpoint makes one answer to a request.", "n")
    wants_usage = endpoint not in _USAGE_ASKED_FOR or bool(options and options.get("include_usage") is True)
    # A second "model", plain or escaped, could be read by an engine in place of the one that was allowed.
    as_sent = raw.count(b'"model"') == 1 and b"\\u00" not in raw
    return Call(endpoint, model, bool(stream), wants_usage, data, raw, _JSON, as_sent)


def _parse_form(endpoint: Endpoint, raw: bytes, content_type: bytes) -> Call:
    if not content_type.lower().startswith(_FORM):
        raise _bad("Audio comes as multipart/form-data, with the fields 'model' and 'file'.", None)
    fields = multipart.fields(raw, content_type, ("model", "stream"))
    model = _model(fields.get("model", ""))
    stream = fields.get("stream", "").lower() in ("true", "1")
    return Call(endpoint, model, stream, True, {}, raw, content_type)


def _model(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise _bad("'model' must be a non-empty string.", "model")
    return name


def _check_content(endpoint: Endpoint, data: dict[str, Any]) -> None:
    if endpoint in OF_MESSAGES:
        messages = _required(data, "messages")
        if not isinstance(messages, list) or not messages:
            raise _bad_messages()
        for item in messages:
            if not isinstance(item, dict):
                raise _bad_messages()
    elif name := endpoint.content:
        if not isinstance(_required(data, name), str | list):
            raise _bad(f"'{name}' must be a string or a list.", name)
    elif endpoint is Endpoint.RERANK:
        if not isinstance(_required(data, "query"), str):
            raise _bad("'query' must be a string.", "query")
        documents = data.get("documents", data.get("texts"))
        if not isinstance(documents, list) or not documents:
            raise _bad("'documents' must be a non-empty list.", "documents")


def _required(data: dict[str, Any], name: str) -> Any:
    if data.get(name) is None:
        raise _bad(f"You must provide '{name}'.", name)
    return data[name]


def _bad_messages() -> GatewayError:
    return _bad("'messages' must be a non-empty list of objects.", "messages")


def _bad(message: str, param: str | None) -> GatewayError:
    return GatewayError(400, "invalid_request", message, param=param)
