"""Streams read on their way, wherever their bytes break."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.meter import MAX_EVENT_BYTES, EventTooLarge, StreamMeter, Usage, read_answer
from tests.fakes.engine import chunk, event

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


def stream(texts: list[str], end: str = "\n\n", *, usage: bool = True) -> bytes:
    items: list[dict | str] = [chunk(None, "engine", role=True), *(chunk(text, "engine") for text in texts)]  # type: ignore[type-arg]
    items.append(chunk(None, "engine", finish="stop"))
    if usage:
        items.append({**chunk(None, "engine"), "choices": [], "usage": USAGE})
    return b"".join(event(item, end) for item in [*items, "[DONE]"])


def read(meter: StreamMeter, data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return b"".join(meter.feed(data[a:b]) for a, b in pairwise(edges)) + meter.end()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(max_size=20), max_size=6),
    st.lists(st.integers(0, 5000), max_size=12),
    st.sampled_from(["\n\n", "\r\n\r\n"]),
    st.booleans(),
)
def test_text_is_never_changed_and_usage_is_always_found(
    texts: list[str], cuts: list[int], end: str, strip: bool
) -> None:
    data = stream(texts, end)
    meter = StreamMeter("public", strip_usage=strip)
    out = read(meter, data, cuts)
    expected = data.replace(b'"model":"engine"', b'"model":"public"')
    if strip:
        expected = b"".join(part for part in expected.split(b"data: ") if b'"usage"' not in part or not part)
        assert out.replace(b"data: ", b"") == expected
    else:
        assert out == expected
    assert meter.done
    assert meter.usage is not None
    assert (meter.usage.prompt_tokens, meter.usage.completion_tokens, meter.usage.cached_tokens) == (7, 3, 2)


def test_a_model_name_inside_the_text_stays() -> None:
    text = 'say "model":"engine" and \\"model\\":\\"engine\\" again'
    out = read(StreamMeter("public", strip_usage=True), stream([text]), [])
    contents = [json.loads(part[6:])["choices"] for part in out.decode().split("\n\n") if '"delta":{"content"' in part]
    assert contents[0][0]["delta"]["content"] == text


def test_chunks_count_as_tokens_when_no_usage_came() -> None:
    meter = StreamMeter("engine", strip_usage=True)
    meter.feed(stream(["a", "b", "c"], usage=False)[:-60])
    assert meter.produced(9).completion_tokens == 3
    assert meter.produced(9).prompt_tokens == 9
    assert StreamMeter("m", strip_usage=True).produced(9).total == 0


def test_the_models_own_words_do_not_end_a_stream() -> None:
    meter = StreamMeter("public", strip_usage=False)
    meter.feed(event(chunk("data: [DONE]\n\ndata: [DONE]\n\n", "engine")))
    assert not meter.done
    meter.feed(b"data:[DONE]\n\n")
    assert meter.done


def test_each_choice_that_is_told_apart_counts() -> None:
    meter = StreamMeter("public", strip_usage=True)
    told = [{**chunk(None, "engine"), "choices": [], "usage": {**USAGE, "completion_tokens": n}} for n in (5, 20, 20)]
    out = meter.feed(b"".join(event(item) for item in (chunk("x", "engine"), *told, "[DONE]")))
    assert meter.produced(0) == Usage(7, 2, 45)
    assert b"usage" not in out


def test_of_an_answer_that_counts_its_first_choice_alone_the_others_are_estimated() -> None:
    choices = [{"message": {"content": "x" * size}} for size in (20, 80, 2)]
    answer = {"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 5}, "timings": {}}
    assert read_answer(json.dumps(answer).encode(), "public")[1] == Usage(7, 0, 5 + 20 + 1)
    del answer["timings"]  # other engines count them all
    assert read_answer(json.dumps(answer).encode(), "public")[1] == Usage(7, 0, 5)


def test_comments_and_unknown_events_pass() -> None:
    meter = StreamMeter("m", strip_usage=True)
    data = b": ping\n\nevent: x\ndata: {}\n\ndata: not json\n\n"
    assert meter.feed(data) == data


def test_an_error_event_of_the_engine_loses_its_paths() -> None:
    for data in (
        b'data: {"error":{"code":500,"message":"no /var/lib/x/model.gguf","type":"server_error"}}\n\n',
        b'error: {"code":500,"message":"no /var/lib/x/model.gguf","type":"server_error"}\n\n',
    ):
        meter = StreamMeter("m", strip_usage=True)
        out = meter.feed(data)
        assert meter.failed
        assert b"/var" not in out
        assert json.loads(out[6:])["error"]["code"] == "engine_error"


def test_an_event_without_an_end_is_not_collected_for_ever() -> None:
    meter = StreamMeter("m", strip_usage=True)
    for _ in range(MAX_EVENT_BYTES // 65536):
        assert meter.feed(b"x" * 65536) == b""
    with pytest.raises(EventTooLarge):
        meter.feed(b"y" * 65536)


def test_a_whole_answer_that_is_no_json_passes() -> None:
    assert read_answer(b"plain", "m") == (b"plain", None)
    body, usage = read_answer(b'{"model":"a","usage":{"prompt_tokens":-1,"completion_tokens":"x"}}', "b")
    assert json.loads(body)["model"] == "b"
    assert usage is not None
    assert usage.total == 0
