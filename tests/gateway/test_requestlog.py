"""What projects that wish it have kept, and that nothing else is."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import requestlog
from gateway.meter import Dialect
from gateway.requestlog import Entry, RequestLog, line_of
from gateway.said import said_in
from tests.gateway.master import make_project, until
from tests.gateway.world import World
from wire.feed import RequestLog as Rules
from wire.redaction import BadPattern, Redaction

pytestmark = pytest.mark.asyncio
MAIL = r"[\w.+-]+@[\w-]+\.[\w.]+"


def entry(**changes: Any) -> Entry:
    made = Entry(
        *(1_800_000_000.0, "p1", Rules(retention_days=7, redact=(MAIL,)), "req-1", "abcdefgh", "/v1/chat/completions"),
        *(Dialect.OPENAI, "public", 200, 3, 4, 12),
        json.dumps({"model": "public", "messages": [{"role": "user", "content": "I am a@b.example"}]}).encode(),
        b'{"choices":[{"message":{"content":"Hello a@b.example"}}]}',
        False,
    )
    return made._replace(**changes)


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_bytes().splitlines()]


def read(line: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line)
    return found


# ------------------------------------------------------------------------------------------------ the whole way


async def test_nothing_is_kept_unless_the_project_wishes_it(world: World) -> None:
    async with world.post() as response:
        assert response.status == 200
    await world.usage()
    assert not world.home.requests.exists()


async def test_requests_and_answers_are_kept_redacted_whole_streamed_and_refused(world: World) -> None:
    rules = Rules(retention_days=7, redact=(MAIL, "wörld"))
    await world.push(projects=(make_project(request_log=rules),))
    ask = world.ask(messages=[{"role": "user", "content": "Write to a@b.example"}])
    for body in (ask, {**ask, "stream": True}):
        async with world.post(body) as response:
            assert response.status == 200
            await response.read()
    world.engine.fail = (400, {"error": {"message": "no a@b.example"}})
    async with world.post(ask) as response:
        assert response.status == 400
    await until(lambda: len(kept(world.home.requests)) == 3, what="lines")
    whole, streamed, refused = kept(world.home.requests)
    assert whole["request"]["messages"] == [{"role": "user", "content": "Write to [redacted]"}]
    assert whole["answer"]["choices"][0]["message"]["content"] == "Hello [redacted] ✓"
    assert (whole["status"], whole["model"], whole["prompt_tokens"]) == (200, "public", world.engine.prompt_tokens)
    assert streamed["answer"]["0.content"] == "Hello [redacted] ✓"
    assert streamed["request"]["stream"] is True
    assert (refused["status"], "error" in refused["answer"]) == (400, True)
    text = json.dumps([whole, streamed, refused])
    assert world.secret not in text
    assert "b.example" not in text
    [path] = world.home.requests.rglob("*.jsonl")
    assert (path.stat().st_mode & 0o777, path.parent.name) == (0o600, "p1")


# ------------------------------------------------------------------------------------------------ parts


async def test_a_word_spread_over_events_is_redacted() -> None:
    pieces = ["I am a", "@b", ".exam", "ple, ", "yes"]
    events = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    stream = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
    line = read(line_of(entry(answer=stream, is_stream=True), Redaction([MAIL])))
    assert line["answer"] == {"0.content": "I am [redacted], yes"}


@pytest.mark.parametrize(
    ("dialect", "events", "said"),
    [
        (
            Dialect.OPENAI,
            [
                {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}}]},
                {"choices": [{"index": 1, "delta": {"content": "x"}}]},
                {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 2, "function": {"name": "f"}}]}}]},
                {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 2, "function": {"arguments": "{}"}}]}}]},
                {"choices": [{"index": 0, "text": "old"}]},
                {"choices": None, "error": {"message": "broke"}},
            ],
            {
                "0.content": "a",
                "1.content": "x",
                "0.tool_calls.2.function.name": "f",
                "0.tool_calls.2.function.arguments": "{}",
                "0.text": "old",
                "errors": [{"message": "broke"}],
            },
        ),
        (
            Dialect.RESPONSES,
            [
                {"type": "response.output_text.delta", "output_index": 0, "delta": "He"},
                {"type": "response.output_text.delta", "output_index": 0, "delta": "y"},
                {"type": "response.completed", "response": {"output": []}},
            ],
            {"0.output_text": "Hey"},
        ),
        (
            Dialect.ANTHROPIC,
            [
                {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "f"}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "He"}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "y"}},
                {"type": "message_stop"},
            ],
            {"1.name": "f", "0.text": "Hey"},
        ),
    ],
)
async def test_what_streams_say_is_put_together(
    dialect: Dialect, events: list[dict[str, Any]], said: dict[str, Any]
) -> None:
    stream = b"".join(b"event: x\ndata: %b\n\n" % json.dumps(event).encode() for event in events)
    assert said_in(stream + b"data: junk\n\ndata: [1]\n\n", dialect) == said


async def test_long_texts_and_what_is_no_text_are_cut_short() -> None:
    image = "A" * 100_000
    body = json.dumps({"messages": [{"content": [{"image_url": {"url": image}}]}]}).encode()
    line = read(line_of(entry(request=body), Redaction([])))
    assert line["request"]["messages"][0]["content"][0]["image_url"]["url"].endswith("… (67232 more characters)")
    assert read(line_of(entry(request=b"\xff" * 10), Redaction([])))["request"] == "10 bytes"
    many = json.dumps([["B" * 30_000] * 400]).encode()
    assert read(line_of(entry(request=many), Redaction([])))["request"].startswith("too long to be kept")


async def test_a_match_across_the_cut_is_redacted() -> None:
    text = "x " * (requestlog.LONGEST_TEXT // 2 - 3) + " first.last@b.example and more"
    said = Redaction([MAIL]).value(text, requestlog.LONGEST_TEXT)
    assert "last@b" not in said
    assert "first" not in said


@pytest.mark.parametrize("pattern", ["", "(", "a*", r"(?<=a)b", "x" * 501])
async def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        Redaction([pattern])


async def test_a_pattern_that_takes_for_ever_elsewhere_does_not_here() -> None:
    assert Redaction([r"(a+)+$"]).text("a" * 30_000 + "b").endswith("b")


async def test_days_that_are_over_and_projects_that_wish_nothing_are_deleted(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, lambda: None)
    for project in ("on", "off", "gone"):
        (tmp_path / project).mkdir()
        for day in ("2026-03-01", "2026-03-04", "2026-03-05"):
            (tmp_path / project / f"{day}.jsonl").write_text("{}\n")
    log.purge({"on": Rules(retention_days=1), "off": None}, date(2026, 3, 5))
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jsonl"))
    assert left == ["on/2026-03-04.jsonl", "on/2026-03-05.jsonl"]


async def test_what_cannot_be_kept_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RequestLog(tmp_path, lambda: None)
    monkeypatch.setattr(requestlog, "MOST_WAITING_BYTES", 1000)
    for _ in range(10):
        log.add(entry(request=b"{}" * 100, answer=b""))
    log.flush()
    assert (len(kept(tmp_path)), log.dropped) == (5, 5)
    monkeypatch.setattr(requestlog, "FREE_BYTES", 1 << 60)
    log.add(entry())
    log.flush()
    assert (len(kept(tmp_path)), log.dropped) == (5, 6)


async def test_a_pattern_this_release_does_not_know_keeps_no_text(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, lambda: None)
    log.add(entry(rules=msgspec.structs.replace(entry().rules, redact=("(",))))
    log.flush()
    [line] = kept(tmp_path)
    assert "request" not in line
    assert line["request_id"] == "req-1"
