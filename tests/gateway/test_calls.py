"""Request bodies: what is taken, what an engine gets, what is reserved."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.calls import ENDPOINTS, Call, Endpoint, parse_call
from gateway.errors import GatewayError
from gateway.estimates import DEFAULT_COMPLETION_TOKENS, estimate, prefix_of, prompt_tokens
from tests.gateway.master import make_route
from wire.feed import ENDPOINT_GROUPS

CHAT: dict[str, Any] = {"model": "public", "messages": [{"role": "user", "content": "Say hi"}]}
BOUNDARY = b"multipart/form-data; boundary=xyz"


def call_of(data: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT) -> Call:
    return parse_call(endpoint, json.dumps(data).encode())


def refused(raw: bytes, endpoint: Endpoint = Endpoint.CHAT, content_type: bytes = b"application/json") -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        parse_call(endpoint, raw, content_type)
    return caught.value


def form(*parts: tuple[str, bytes], end: bytes = b"--xyz--\r\n") -> bytes:
    heads = [b"--xyz\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (h.encode(), v) for h, v in parts]
    return b"".join(heads) + end


def test_every_endpoint_has_a_group_that_the_feed_knows() -> None:
    assert {endpoint.group for endpoint in Endpoint} == set(ENDPOINT_GROUPS)
    assert set(ENDPOINTS.values()) == set(Endpoint)


def test_the_engine_gets_the_clients_own_bytes_where_nothing_differs() -> None:
    raw = b'{ "model":"public",  "new_parameter": {"of": [1, 2.50]}, "messages":[{"role":"user","content":"x"}] }'
    assert parse_call(Endpoint.CHAT, raw).body_for("public") is raw


def test_unknown_parameters_pass_under_the_engines_name() -> None:
    sent = json.loads(call_of({**CHAT, "new_parameter": {"deep": [1, None, "é"]}}).body_for("engine"))
    assert sent == {**CHAT, "model": "engine", "new_parameter": {"deep": [1, None, "é"]}}


@pytest.mark.parametrize(
    "second", ['"model":"secret"', '"mo\\u0064el":"secret"', '"\\u006dodel": "secret"', '"model" : "secret"']
)
@pytest.mark.parametrize("first", [True, False])
def test_a_second_model_never_reaches_the_engine(second: str, first: bool) -> None:
    rest = '"messages":[{"role":"user","content":"x"}]'
    one, two = ('"model":"public"', second) if first else (second, '"model":"public"')
    call = parse_call(Endpoint.CHAT, f"{{{one},{two},{rest}}}".encode())
    body = call.body_for(call.model)
    assert body.count(b"odel") == 1
    assert json.loads(body)["model"] == call.model


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b'{"model":"m","messages":[{"role":"user","content":"x"}',
        b'{"model":"m","messages":[{"role":"user","content":"\xff\xfe"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":1,"messages":[{}]}',
        b'{"model":"","messages":[{}]}',
        b'{"model":"m","messages":{}}',
        b'{"model":"m","messages":["x"]}',
        b'{"model":"m","messages":[{}],"n":0}',
        b'{"model":"m","messages":[{}],"n":1e400}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_request_is_a_400(raw: bytes) -> None:
    assert refused(raw).status == 400


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    for endpoint in Endpoint:
        with_form = endpoint in (Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS)
        with contextlib.suppress(GatewayError):
            parse_call(endpoint, raw, BOUNDARY if with_form else b"application/json")


@pytest.mark.parametrize(
    ("endpoint", "data"),
    [
        (Endpoint.RESPONSES, {"input": "Say hi"}),
        (Endpoint.RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Say hi"}]}]}),
        (Endpoint.MESSAGES, {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 5}),
        (Endpoint.RERANK, {"query": "a", "documents": ["b", {"text": "c"}]}),
        (Endpoint.TOKENIZE, {"content": "Say hi"}),
        (Endpoint.DETOKENIZE, {"tokens": [1, 2]}),
        (Endpoint.SPEECH, {"input": "Say hi", "voice": "x"}),
        (Endpoint.EMBEDDINGS, {"input": [[1, 2], [3]]}),
    ],
)
def test_each_endpoint_takes_its_own_body(endpoint: Endpoint, data: dict[str, Any]) -> None:
    call = call_of({"model": "public", **data}, endpoint)
    assert orjson.loads(call.body_for("engine")) == {"model": "engine", **data}
    assert prompt_tokens(call) >= 0
    assert prefix_of(call) is not None


def test_only_chat_and_completions_are_asked_for_usage() -> None:
    for endpoint, content in ((Endpoint.CHAT, {}), (Endpoint.RESPONSES, {"input": "x"}), (Endpoint.MESSAGES, {})):
        sent = orjson.loads(call_of({**CHAT, **content, "stream": True}, endpoint).body_for("engine"))
        assert ("stream_options" in sent) is (endpoint is Endpoint.CHAT)


def test_a_model_says_what_it_can_do_instead() -> None:
    call = call_of({"model": "public", "input": "x"}, Endpoint.EMBEDDINGS)
    with pytest.raises(GatewayError, match=r"cannot make embeddings\. What it can: chat, complete texts") as caught:
        call.for_route(make_route("public", endpoints=("chat", "completions")))
    assert (caught.value.status, caught.value.code) == (400, "unsupported_by_model")


# ------------------------------------------------------------------------------------------------ audio


def test_the_model_of_a_form_is_replaced_and_the_file_stays_as_it_is() -> None:
    file = bytes(range(256)) * 4 + b"\r\n--xy\r\nmodel"
    raw = form(('name="file"; filename="a.wav"', file), ('name="model"', b"public"), ('name="language"', b"de"))
    call = parse_call(Endpoint.TRANSCRIPTIONS, raw, BOUNDARY)
    assert call.model == "public"
    assert call.body_for("engine-model") == raw.replace(b"\r\n\r\npublic\r\n", b"\r\n\r\nengine-model\r\n")


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [
        (b"{}", b"application/json"),
        (form(('name="file"; filename="x"', b"x")), BOUNDARY),
        (form(('name="model"', b"a"), ('name="model"', b"b")), BOUNDARY),
        (form(('name="model"; filename="x"', b"a")), BOUNDARY),
        (form(('name="model"', b"a" * 2000)), BOUNDARY),
        (form(('name="model"', b"\xff")), BOUNDARY),
        (form(('name="model"', b"a"), end=b""), BOUNDARY),
        (form(('name="model"', b"a")), b"multipart/form-data"),
        (form(('name="model"', b"a")), b"multipart/form-data; boundary=other"),
        (form(*[('name="x"', b"a")] * 200), BOUNDARY),
    ],
)
def test_a_form_that_cannot_be_read_is_a_400(raw: bytes, content_type: bytes) -> None:
    assert refused(raw, Endpoint.TRANSCRIPTIONS, content_type).status == 400


@given(st.binary(max_size=200).filter(lambda data: b"--xyz" not in data))
def test_any_file_passes_byte_for_byte(file: bytes) -> None:
    raw = form(('name="model"', b"public"), ('name="file"; filename="a"', file))
    call = parse_call(Endpoint.TRANSLATIONS, raw, BOUNDARY)
    assert call.body_for("e") == raw.replace(b"public", b"e", 1)


# ------------------------------------------------------------------------------------------------ estimates


@pytest.mark.parametrize(
    ("endpoint", "data", "answers"),
    [
        (Endpoint.CHAT, {"max_tokens": 10}, 10),
        (Endpoint.CHAT, {"max_tokens": 10, "n": 3}, 30),
        (Endpoint.CHAT, {"max_tokens": 99, "max_completion_tokens": 10}, 99),  # TGI knows the first only
        (Endpoint.CHAT, {"max_tokens": 10, "n_predict": 99.5}, 99),  # llama.cpp takes the second
        (Endpoint.CHAT, {"max_tokens": 10, "n_cmpl": 3}, 30),
        (Endpoint.CHAT, {"n_predict": 7}, 7),
        (Endpoint.COMPLETIONS, {"prompt": ["a", "b", "c"], "max_tokens": 10, "n": 2}, 60),
        (Endpoint.COMPLETIONS, {"prompt": "a", "max_tokens": 10, "best_of": 4}, 40),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 10}, 10),
        (Endpoint.COMPLETIONS, {"prompt": [[1, 2], [3]], "max_tokens": 10}, 20),
        (Endpoint.RESPONSES, {"input": "a", "max_output_tokens": 10}, 10),
        (Endpoint.MESSAGES, {"max_tokens": 10}, 10),
        (Endpoint.EMBEDDINGS, {"input": ["a"]}, 0),
    ],
)
def test_all_answers_are_reserved(endpoint: Endpoint, data: dict[str, Any], answers: int) -> None:
    ask = estimate(call_of({**CHAT, **data}, endpoint), 4096)
    assert (ask.completion_tokens, ask.bounded) == (answers, True)


@pytest.mark.parametrize(
    ("endpoint", "data"),
    [
        (Endpoint.CHAT, {"max_tokens": 10, "n_predict": -1}),
        (Endpoint.CHAT, {"max_tokens": 10, "n_predict": "5"}),
        (Endpoint.CHAT, {"max_output_tokens": 10}),
        (Endpoint.RESPONSES, {"input": "x", "max_tokens": 10}),
        (Endpoint.MESSAGES, {"max_completion_tokens": 10}),
    ],
)
def test_a_bound_that_an_engine_does_not_obey_is_none_and_a_cap_replaces_it(
    endpoint: Endpoint, data: dict[str, Any]
) -> None:
    call = call_of({**CHAT, **data}, endpoint)
    assert not estimate(call, None).bounded
    capped = call.bounded_to(7)
    assert estimate(capped, None) == estimate(capped, None)._replace(completion_tokens=7, bounded=True)
    assert "n_predict" not in json.loads(capped.body_for("public"))


@pytest.mark.parametrize("endpoint", [Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.COUNT_TOKENS])
def test_several_answers_are_refused_where_the_api_knows_one(endpoint: Endpoint) -> None:
    for name in ("n", "n_cmpl", "best_of"):
        assert refused(json.dumps({**CHAT, "input": "x", name: 2}).encode(), endpoint).status == 400
        assert call_of({**CHAT, "input": "x", name: 1}, endpoint)


def test_without_a_bound_something_is_reserved_and_the_context_is_the_most() -> None:
    assert estimate(call_of(CHAT), None).completion_tokens == DEFAULT_COMPLETION_TOKENS
    assert not estimate(call_of(CHAT), None).bounded
    assert estimate(call_of({**CHAT, "max_tokens": 10_000}), 100).completion_tokens < 100


def test_tools_schemas_and_pictures_count_into_the_prompt() -> None:
    plain = prompt_tokens(call_of(CHAT))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"description": "x" * 400}}}
    assert prompt_tokens(call_of({**CHAT, "tools": [tool]})) >= plain + 100
    assert prompt_tokens(call_of({**CHAT, "response_format": {"schema": "x" * 400}})) >= plain + 100
    picture = {"type": "image_url", "image_url": {"url": "data:..."}}
    assert prompt_tokens(call_of({**CHAT, "messages": [{"role": "user", "content": [picture]}]})) > plain + 100


def test_token_ids_are_counted_exactly() -> None:
    assert prompt_tokens(call_of({"model": "m", "prompt": [1] * 50}, Endpoint.COMPLETIONS)) == 50
    assert prompt_tokens(call_of({"model": "m", "input": [[1] * 50, [1] * 7]}, Endpoint.EMBEDDINGS)) == 57


def test_a_session_that_the_client_names_is_the_prefix() -> None:
    assert prefix_of(call_of({**CHAT, "prompt_cache_key": "s-1"})) == b"s-1"
    assert prefix_of(call_of({**CHAT, "user": "u"})) == b"u"
    longer = {**CHAT, "messages": [*CHAT["messages"], {"role": "assistant", "content": "hi"}, {"role": "user"}]}
    other = {**CHAT, "messages": [{"role": "user", "content": "Else"}]}
    assert prefix_of(call_of(longer)) == prefix_of(call_of(CHAT))  # the next turn of the same conversation
    assert prefix_of(call_of(longer)) != prefix_of(call_of(other))
