"""Anthropic's Messages API on engines that have only chat: requests, answers and streams are translated."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import anthropic
import orjson
import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gateway.anthropic.stream import MessagesMeter
from gateway.calls import Call, Endpoint, parse_call
from gateway.errors import GatewayError
from gateway.estimates import estimate, prompt_tokens, session_of
from gateway.meter import Usage
from tests.fakes.engine import event
from tests.gateway.master import make_route

CHAT_ONLY = make_route("public", endpoints=("chat", "completions", "tokenize"))
NATIVE = make_route("public", endpoints=("chat", "messages"))
ASK: dict[str, Any] = {"model": "public", "max_tokens": 9, "messages": [{"role": "user", "content": "Say hi"}]}
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


def call_of(endpoint: Endpoint = Endpoint.MESSAGES, **changes: Any) -> Call:
    return parse_call(endpoint, json.dumps({**ASK, **changes}).encode()).for_route(CHAT_ONLY)


def sent(**changes: Any) -> dict[str, Any]:
    """What the engine gets."""
    found: dict[str, Any] = orjson.loads(call_of(**changes).body_for("engine"))
    return found


def refused(**changes: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        call_of(**changes)
    return caught.value


# ------------------------------------------------------------------------------------------------ requests


def test_an_engine_with_the_api_of_its_own_gets_the_clients_bytes() -> None:
    call = parse_call(Endpoint.MESSAGES, json.dumps(ASK).encode())
    assert call.for_route(NATIVE) is call
    assert call.path == "/v1/messages"
    assert call_of().path == "/v1/chat/completions"


def test_a_plain_message_and_parameters_of_the_engine_pass() -> None:
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "chat_template_kwargs": {"a": 1}}
    assert sent(**given, stop_sequences=["END"], system="Be short.") == {
        "model": "engine",
        "max_tokens": 9,
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say hi"}],
        "stop": ["END"],
        **given,
    }


def test_what_only_anthropics_service_knows_is_left_out() -> None:
    made = sent(thinking={"type": "disabled"}, service_tier="auto", metadata={"user_id": "u-1"})
    assert made == {"model": "engine", "max_tokens": 9, "messages": ASK["messages"], "user": "u-1"}


def test_a_stream_tells_its_usage() -> None:
    assert sent(stream=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent()


def test_a_conversation_with_tools_keeps_its_order() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    made = sent(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Look", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "é"}},
                    {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a"}, picture]},
                    {"type": "tool_result", "tool_use_id": "t2", "content": "b", "is_error": True},
                    {"type": "text", "text": "Well?"},
                ],
            },
        ],
        system=[{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
    )
    assert made["messages"] == [
        {"role": "system", "content": "One.\nTwo."},
        {"role": "user", "content": "Look"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at":"é"}'}},
                {"id": "t2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "a"},
        {"role": "tool", "tool_call_id": "t2", "content": "b"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("choice", "becomes"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        ({"type": "tool", "name": "look"}, {"tool_choice": {"type": "function", "function": {"name": "look"}}}),
    ],
)
def test_tools_and_their_choice(choice: dict[str, Any], becomes: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string"}}}
    made = sent(tools=[{"name": "look", "description": "Looks.", "input_schema": schema}], tool_choice=choice)
    function = {"name": "look", "description": "Looks.", "parameters": schema}
    assert made["tools"] == [{"type": "function", "function": function}]
    assert {name: made[name] for name in becomes} == becomes


def test_a_schema_for_the_answer() -> None:
    made = sent(output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}})
    assert made["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "output_config" not in made


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"mcp_servers": [{"url": "https://x.test"}]},
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64", "data": "x"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
    ],
)
def test_what_a_chat_cannot_say_is_refused_with_its_name(changes: dict[str, Any]) -> None:
    error = refused(**changes)
    assert (error.status, error.code) == (400, "unsupported_by_model")
    assert "cannot be translated" in error.message


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [{"role": "user", "content": 1}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "x"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
        {"system": 1},
        {"tools": {"a": 1}},
        {"tools": [{}]},
        {"tool_choice": "auto"},
        {"tool_choice": {"type": []}},
        {"output_config": {"format": {"type": "xml"}}},
    ],
)
def test_what_is_no_message_is_a_400(changes: dict[str, Any]) -> None:
    assert (refused(**changes).status, refused(**changes).code) == (400, "invalid_request")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "content", "source", "role", "name", "id", "input"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["messages", "system", "tools", "tool_choice", "metadata", "stream"]), _JSON))
def test_no_json_breaks_the_translation(changes: dict[str, Any]) -> None:
    with contextlib.suppress(GatewayError):
        call = call_of(**changes)
        call.body_for("engine")
        estimate(call, 100)


def test_the_estimate_is_that_of_the_messages() -> None:
    call = parse_call(Endpoint.MESSAGES, json.dumps({**ASK, "system": "x" * 400}).encode())
    assert prompt_tokens(call.for_route(CHAT_ONLY)) >= prompt_tokens(call) >= 100
    assert session_of(call_of(metadata={"user_id": "u"})) == b"u"


# ------------------------------------------------------------------------------------------------ whole answers


def answer(message: dict[str, Any], finish: str = "stop", **choice: Any) -> dict[str, Any]:
    body = {"id": "c-1", "choices": [{"message": message, "finish_reason": finish, **choice}], "usage": USAGE}
    out, usage = call_of().read_answer(json.dumps(body).encode())
    assert usage == Usage(11, 4, 3)
    anthropic.types.Message.model_validate_json(out)
    found: dict[str, Any] = json.loads(out)
    return found


def test_an_answer_becomes_a_message() -> None:
    made = answer({"role": "assistant", "content": "Hi", "reasoning_content": "hm"})
    assert [block["type"] for block in made["content"]] == ["thinking", "text"]
    assert made["content"][1]["text"] == "Hi"
    assert (made["type"], made["role"], made["model"]) == ("message", "assistant", "public")
    assert made["usage"]["input_tokens"] + made["usage"]["cache_read_input_tokens"] == 11
    assert (made["usage"]["cache_read_input_tokens"], made["usage"]["output_tokens"]) == (4, 3)


@pytest.mark.parametrize(
    ("choice", "reason", "sequence"),
    [
        ({"finish": "stop"}, "end_turn", None),
        ({"finish": "length"}, "max_tokens", None),
        ({"finish": "content_filter"}, "refusal", None),
        ({"finish": "stop", "stop_reason": "END"}, "stop_sequence", "END"),  # vLLM
        ({"finish": "stop", "matched_stop": "END"}, "stop_sequence", "END"),  # SGLang
        ({"finish": "stop", "matched_stop": 151645}, "end_turn", None),  # the id of a token
        ({"finish": "new_one"}, "end_turn", None),
    ],
)
def test_why_it_ended(choice: dict[str, Any], reason: str, sequence: str | None) -> None:
    made = answer({"content": "x"}, **choice)
    assert (made["stop_reason"], made["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("arguments", "becomes"),
    [('{"a": 1}', {"a": 1}), ("", {}), ({"a": 1}, {"a": 1}), ('{"a": ', {"INVALID_JSON": '{"a": '}), ("[]", None)],
)
def test_tool_calls_become_blocks(arguments: Any, becomes: Any) -> None:
    call = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    made = answer({"content": None, "tool_calls": [call]}, finish="stop")
    (block,) = made["content"]
    assert (block["type"], block["id"], block["name"]) == ("tool_use", "t1", "look")
    assert block["input"] == ({"INVALID_JSON": "[]"} if becomes is None else becomes)
    assert made["stop_reason"] == "tool_use"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[{"message":null}]}', b"\xff"])
def test_what_is_no_chat_answer_is_the_engines_fault(body: bytes) -> None:
    for endpoint in (Endpoint.MESSAGES, Endpoint.COUNT_TOKENS):
        with pytest.raises(GatewayError) as caught:
            call_of(endpoint).read_answer(body)
        assert (caught.value.status, caught.value.code) == (502, "engine_failed")


def test_tokens_are_counted_by_the_engine_itself() -> None:
    call = call_of(Endpoint.COUNT_TOKENS, max_tokens=500, n_predict=500)
    assert call.path == "/v1/chat/completions"
    assert json.loads(call.body_for("engine")) == {"model": "engine", "max_tokens": 1, "messages": ASK["messages"]}
    assert estimate(call, None).completion_tokens == 1  # it is work, so it is reserved
    out, usage = call.read_answer(json.dumps({"choices": [], "usage": USAGE}).encode())
    assert (json.loads(out), usage) == ({"input_tokens": 11}, Usage(11, 4, 3))


# ------------------------------------------------------------------------------------------------ streams


def delta(finish: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": fields, "finish_reason": finish}
    return {"id": "c-1", "object": "chat.completion.chunk", "model": "engine", "choices": [choice]}


def tool(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    start = {"id": f"t{index}", "type": "function"} if name else {}
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return {"index": index, **start, "function": function}


STREAM = b"".join(
    event(item)
    for item in (
        delta(role="assistant", content=None),
        delta(reasoning_content="h"),
        delta(reasoning_content="m"),
        delta(content='a "quote" and data: [DONE]\n\n'),
        delta(content="é"),
        delta(index=1, content="of another choice"),
        delta(tool_calls=[tool(0, "", "look")]),
        delta(tool_calls=[tool(0, '{"at":')]),
        delta(tool_calls=[tool(0, '"x"}')]),
        delta(tool_calls=[tool(1, "{}", "see"), tool(2, "{}", "see")]),
        delta(finish="tool_calls"),
        {"id": "c-1", "model": "engine", "choices": [], "usage": USAGE},
        "[DONE]",
    )
)


def events_of(out: bytes) -> list[dict[str, Any]]:
    found = []
    for item in out.decode().split("\n\n")[:-1]:
        name, data = item.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        if found[-1]["type"] != "error":
            TypeAdapter(RawMessageStreamEvent).validate_python(found[-1])
    return found


def test_a_stream_becomes_anthropics_events() -> None:
    meter = call_of(stream=True).meter()
    events = events_of(meter.feed(STREAM) + meter.end())
    assert [event["type"].removeprefix("content_") for event in events] == [
        "message_start",
        *("block_start", "block_delta", "block_delta", "block_stop"),  # thinking
        *("block_start", "block_delta", "block_delta", "block_stop"),  # text
        *("block_start", "block_delta", "block_delta", "block_stop"),
        *("block_start", "block_delta", "block_stop"),
        *("block_start", "block_delta", "block_stop"),
        "message_delta",
        "message_stop",
    ]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(block["type"], block.get("id")) for block in starts] == [
        ("thinking", None),
        ("text", None),
        *(("tool_use", f"t{number}") for number in range(3)),
    ]
    pieces: dict[int, str] = {}
    for item in events:
        if item["type"] == "content_block_delta":
            pieces[item["index"]] = pieces.get(item["index"], "") + list(item["delta"].values())[-1]
    assert pieces == {0: "hm", 1: 'a "quote" and data: [DONE]\n\né', 2: '{"at":"x"}', 3: "{}", 4: "{}"}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 3
    assert events[0]["message"]["model"] == "public"
    assert (meter.usage, meter.done, meter.failed) == (Usage(11, 4, 3), True, False)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12), line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_any_cut_of_the_bytes_gives_the_same_events(cuts: list[int], line_end: bytes) -> None:
    whole = MessagesMeter("public")
    expected = whole.feed(STREAM) + whole.end()
    data = STREAM.replace(b"\n", line_end)
    meter = MessagesMeter("public")
    ends = sorted({0, len(data), *cuts})
    out = b"".join(meter.feed(data[start:end]) for start, end in itertools.pairwise(ends)) + meter.end()
    assert out == expected
    assert meter.usage == whole.usage


def test_a_stream_that_broke_off_has_no_end() -> None:
    meter = MessagesMeter("public")
    out = meter.feed(STREAM[: STREAM.index(b'"finish_reason":"tool_calls"')]) + meter.end()
    assert events_of(out)[-1]["type"] == "content_block_delta"
    assert not meter.done
    assert meter.produced(99).prompt_tokens == 99
    assert meter.produced(99).completion_tokens > 0


def test_an_error_of_the_engine_is_one_of_anthropics() -> None:
    meter = MessagesMeter("public")
    told = {"error": {"code": 500, "message": "at /srv/models/m.gguf", "type": "server_error"}}
    events = events_of(meter.feed(event(delta(content="x")) + event(told) + event("[DONE]")))
    assert [item["type"] for item in events[-1:]] == ["error"]
    assert events[-1]["error"]["type"] == "api_error"
    assert "/srv" not in events[-1]["error"]["message"]
    assert meter.failed


@pytest.mark.parametrize(
    "item",
    [
        "not json",
        "[]",
        '{"choices":{}}',
        '{"choices":[1]}',
        '{"choices":[{"delta":1}]}',
        '{"choices":[{"delta":{"tool_calls":1,"content":{}}}]}',
        '{"choices":[{"delta":{"tool_calls":[1,{"index":"x","function":{"name":{},"arguments":1},"id":{}}]}}]}',
        '{"choices":[{"index":0,"finish_reason":{"a":1}}]}',
        '{"id":7,"choices":[],"usage":{"prompt_tokens":"x"}}',
    ],
)
def test_garbage_in_a_stream_harms_nothing(item: str) -> None:
    meter = MessagesMeter("public")
    events = events_of(meter.feed(event(item) + event(delta(content="fine")) + event("[DONE]") + event("[DONE]")))
    assert [found["delta"]["text"] for found in events if found.get("delta", {}).get("type") == "text_delta"] == [
        "fine"
    ]
    assert [found["type"] for found in events].count("message_stop") == 1
