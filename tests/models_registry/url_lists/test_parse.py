"""Lists of URLs as people and programs write them."""

from __future__ import annotations

import pytest

from models_registry.errors import BadSource
from models_registry.scan import MOST_FILES
from models_registry.urls.parse import UrlFile, checked_headers, parse

HASH = "ab" * 32


def test_lines_and_json_say_the_same() -> None:
    lines = f"""
    # weights
    https://example.org/a/model%20one.gguf?sig=x#top
    http://10.0.0.5:8080/tok.json  sha256={HASH.upper()}  path=tok/tokenizer.json
    """
    expected = (
        UrlFile("https://example.org/a/model%20one.gguf?sig=x", "model one.gguf"),
        UrlFile("http://10.0.0.5:8080/tok.json", "tok/tokenizer.json", HASH),
    )
    assert parse(lines) == expected
    second = f'{{"url": "http://10.0.0.5:8080/tok.json", "sha256": "{HASH}", "path": "tok/tokenizer.json"}}'
    assert parse(f'["https://example.org/a/model%20one.gguf?sig=x", {second}]') == expected
    assert parse(second) == expected[1:]
    assert expected[0].shown == "https://example.org/a/model%20one.gguf"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "no URL"),
        ("[", "no JSON"),
        ("[1]", "no entry"),
        ('[{"url": 1}]', "are texts"),
        ('[{"url": "https://a/b", "size": "1"}]', "no entry"),
        ("ftp://example.org/x", "no http"),
        ("file:///etc/passwd", "no http"),
        ("https:///x", "no http"),
        ("https://exa\x01mple.org/x", "no http"),
        ("https://[::1/x", "no http"),
        ("https://example.org:99999/x", "no http"),
        (f"https://example.org/{'x' * 5000}", "no http"),
        ("https://me:secret@example.org/x", "password"),
        ("https://example.org/", "names no file"),
        ("https://example.org/x sha256=12", "no sha256"),
        ("https://example.org/x size=12", "neither"),
        ("https://example.org/x path=../y", "not safe"),
        ("https://example.org/x path=/etc/y", "not safe"),
        ("https://example.org/..%2F..%2Fy", "not safe"),
        ("https://example.org/a%00b", "not safe"),
        ("https://example.org/x\nhttps://example.com/x", "Two files"),
        ("https://example.org/x\nhttps://example.com/y path=x/y", "a folder with"),
    ],
)
def test_what_cannot_be_fetched_or_placed_is_said(given: str, words: str) -> None:
    with pytest.raises(BadSource, match=words):
        parse(given)


def test_a_list_of_a_hundred_thousand_is_refused_at_once() -> None:
    with pytest.raises(BadSource, match=f"{MOST_FILES} are the most"):
        parse("\n".join(f"https://example.org/{number}" for number in range(100_000)))


@pytest.mark.parametrize(
    "headers",
    [{"X-A": "b\r\nX-C: d"}, {"X\r\nY": "z"}, {"Range": "bytes=0-1"}, {"host": "x"}, {"X": "ü"}, {"": "x"}],
)
def test_headers_that_would_say_something_else_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(BadSource):
        checked_headers(headers)
