"""Small HTTP calls of the launcher, with the standard library."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # these addresses are this machine's own


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether `GET url` gives 200."""
    try:
        with _opener.open(url, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):
        return False


def ask(gateway_base: str, key: str, body: dict[str, Any], timeout_s: float = 120.0) -> Any:
    """`POST /chat/completions`, not streamed: the response body.

    Raises:
        urllib.error.HTTPError, OSError, ValueError.
    """
    with _opener.open(_request(gateway_base, key, body), timeout=timeout_s) as response:
        return json.loads(response.read())


def stream(gateway_base: str, key: str, body: dict[str, Any], timeout_s: float = 120.0) -> Iterator[str]:
    """`POST /chat/completions`, streamed: the pieces of text as they come."""
    with _opener.open(_request(gateway_base, key, {**body, "stream": True}), timeout=timeout_s) as response:
        for raw in response:
            line = raw.decode().strip()
            if not line.startswith("data:") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data:"))
            if "error" in chunk:
                raise ValueError(chunk["error"].get("message", "the engine failed"))
            for choice in chunk.get("choices", []):
                text = choice.get("delta", {}).get("content")
                if text:
                    yield text


def problem_of(error: urllib.error.HTTPError) -> str:
    """The message inside an OpenAI error, or the status."""
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"HTTP {error.code}"


def _request(gateway_base: str, key: str, body: dict[str, Any]) -> urllib.request.Request:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = json.dumps(body).encode()
    return urllib.request.Request(f"{gateway_base}/chat/completions", data=data, headers=headers)  # noqa: S310
