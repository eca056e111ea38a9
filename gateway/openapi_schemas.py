"""Schemas of requests and answers for `gateway.openapi`.

Requests name what the gateway itself looks at and what most clients use. They are open: any other field is passed to
the engine as it is, so that an engine's new parameter works the day it appears.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_MODEL: Schema = {"type": "string", "minLength": 1, "description": "A name from `GET /v1/models`."}
_STREAM: Schema = {"type": "boolean", "default": False, "description": "Answer with server-sent events."}
_STOP: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_SAMPLING: dict[str, Schema] = {
    "temperature": {"type": "number"},
    "top_p": {"type": "number"},
    "stop": _STOP,
    "seed": {"type": "integer"},
}
_BOUND = "Bounds the answer, and what is reserved of a token quota. Without it 512 tokens are reserved."


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _open(required: list[str], **properties: Schema) -> Schema:
    """An object that may have more fields than these."""
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": True}


def _list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(name: str, **properties: Schema) -> Schema:
    """An answer whose `object` says what it is."""
    return _open(["object"], object={"const": name}, **properties)


def requests() -> dict[str, Schema]:
    """Bodies of requests, by schema name."""
    message = _open(
        ["role"],
        role={"type": "string", "examples": ["system", "user", "assistant", "tool"]},
        content={"description": "Text, or a list of parts (text, images, audio, as the model can)."},
    )
    return {
        "ChatRequest": _open(
            ["model", "messages"],
            model=_MODEL,
            messages={**_list_of(message), "minItems": 1},
            stream=_STREAM,
            stream_options=_open([], include_usage={"type": "boolean"}),
            max_completion_tokens={**_COUNT, "description": _BOUND},
            max_tokens={**_COUNT, "description": "The older name of `max_completion_tokens`."},
            n=_COUNT,
            tools=_list_of({"type": "object"}),
            tool_choice={},
            response_format={"type": "object", "description": "`json_object`, or `json_schema` with a schema."},
            logprobs={"type": "boolean"},
            **_SAMPLING,
        ),
        "CompletionRequest": _open(
            ["model", "prompt"],
            model=_MODEL,
            prompt={"description": "Text, several texts, or token ids."},
            stream=_STREAM,
            max_tokens={**_COUNT, "description": _BOUND},
            n=_COUNT,
            **_SAMPLING,
        ),
        "EmbeddingRequest": _open(
            ["model", "input"],
            model=_MODEL,
            input={"anyOf": [{"type": "string"}, {"type": "array"}], "description": "Text, texts, or token ids."},
            encoding_format={"enum": ["float", "base64"]},
        ),
        "ResponsesRequest": _open(
            ["model", "input"],
            model=_MODEL,
            input={"anyOf": [{"type": "string"}, {"type": "array"}]},
            instructions={"type": "string"},
            stream=_STREAM,
            max_output_tokens={**_COUNT, "description": _BOUND},
            tools=_list_of({"type": "object"}),
        ),
        "MessagesRequest": _open(
            ["model", "messages"],
            model=_MODEL,
            messages={**_list_of(message), "minItems": 1},
            system={"description": "Text, or a list of text blocks."},
            max_tokens=_COUNT,
            stream=_STREAM,
            tools=_list_of({"type": "object"}),
            temperature={"type": "number"},
            stop_sequences=_list_of({"type": "string"}),
        ),
        "RerankRequest": _open(
            ["model", "query", "documents"],
            model=_MODEL,
            query={"type": "string"},
            documents={"type": "array", "minItems": 1},
            top_n=_COUNT,
        ),
        "TokenizeRequest": _open(["model"], model=_MODEL, prompt={"type": "string"}, content={"type": "string"}),
        "DetokenizeRequest": _open(["model", "tokens"], model=_MODEL, tokens=_list_of({"type": "integer"})),
        "AudioRequest": _open(
            ["model", "file"],
            model=_MODEL,
            file={"type": "string", "contentMediaType": "application/octet-stream"},
            language={"type": "string"},
            response_format={"type": "string", "examples": ["json", "text", "srt", "verbose_json", "vtt"]},
        ),
        "SpeechRequest": _open(["model", "input"], model=_MODEL, input={"type": "string"}, voice={"type": "string"}),
    }


def answers() -> dict[str, Schema]:
    """Bodies of answers, by schema name."""
    usage = _open(
        ["prompt_tokens", "total_tokens"],
        prompt_tokens={"type": "integer"},
        completion_tokens={"type": "integer"},
        total_tokens={"type": "integer"},
        prompt_tokens_details=_open(
            [], cached_tokens={"type": "integer", "description": "Of the prompt, found in the engine's cache."}
        ),
    )
    choices = _list_of(_open(["index"], index={"type": "integer"}, finish_reason={"type": ["string", "null"]}))
    return {
        "Usage": usage,
        "Chat": _object("chat.completion", model=_MODEL, choices=choices, usage=ref("Usage")),
        "Completion": _object("text_completion", model=_MODEL, choices=choices, usage=ref("Usage")),
        "Embeddings": _object("list", model=_MODEL, data=_list_of({"type": "object"}), usage=ref("Usage")),
        "Response": _object("response", model=_MODEL, output=_list_of({"type": "object"}), status={"type": "string"}),
        "Message": _open(
            ["type", "content"],
            type={"const": "message"},
            content=_list_of({"type": "object"}),
            stop_reason={"type": ["string", "null"]},
            usage=_open([], input_tokens={"type": "integer"}, output_tokens={"type": "integer"}),
        ),
        "TokenCount": _open(["input_tokens"], input_tokens={"type": "integer"}),
        "Ranking": _open(["results"], results=_list_of(_open(["index"], index={"type": "integer"}))),
        "Tokens": _open(["tokens"], tokens={"type": "array"}),
        "Text": _open([]),
        "Model": _object("model", id={"type": "string"}, created={"type": "integer"}, owned_by={"type": "string"}),
        "Models": _object("list", data=_list_of(ref("Model"))),
        "Error": _open(
            ["error"],
            error=_open(
                ["message", "type", "code"],
                message={"type": "string", "description": "What went wrong and what to do."},
                type={"type": "string"},
                param={"type": ["string", "null"]},
                code={"type": ["string", "null"], "description": "Stable: programs may look at it."},
            ),
        ),
        "AnthropicError": _open(
            ["type", "error"],
            type={"const": "error"},
            error=_open(["type", "message"], type={"type": "string"}, message={"type": "string"}),
        ),
    }
