"""One file at its source: where its bytes come from now, and what an answer to a request for some of them means."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

import aiohttp

from models_registry.errors import SourceChanged, SourceGone, SourceRefused, SourceUnreachable

MOST_REDIRECTS = 5
LONGEST_PAUSE_S = 300.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_RATE_LIMIT = re.compile(r";\s*r=0\s*;\s*t=(\d+)")
_REDIRECTS = (301, 302, 303, 307, 308)


class TryAgain(Exception):
    """This try failed, another may not. `after_s`: the source asked for so much patience."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


@dataclass
class Remote:
    """`headers` go to the host of `url` only, never to where it redirects."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    etag: str = ""
    """What the source calls this content; an answer with another one is of another content. Empty: not known."""
    has_hash: bool = False
    """The content's own hash is known: ETags, which differ from one mirror to the next, do not matter."""
    name: str = ""
    """For people."""
    located: str = ""
    """Where the last redirect led: asked straight from then on, until it is refused."""

    def __post_init__(self) -> None:
        self.name = self.name or self.url

    async def open(self, session: aiohttp.ClientSession, start: int, end: int, size: int) -> Opening:
        """Ask for bytes `start` to `end` (excluded). Close the answer.

        Raises TryAgain, SourceRefused, SourceGone, SourceChanged, SourceUnreachable, aiohttp.ClientError, TimeoutError.
        """
        url = self.located or self.url
        for _ in range(MOST_REDIRECTS + 1):
            headers = {"Accept-Encoding": "identity"}
            if end - start < size:
                headers["Range"] = f"bytes={start}-{end - 1}"
            if _host(url) == _host(self.url):
                headers |= self.headers
            answer = await session.get(url, headers=headers, allow_redirects=False)
            if answer.status in _REDIRECTS:
                target = answer.headers.get("Location", "")
                answer.close()
                if not target:
                    raise TryAgain("a redirect without an address")
                url = self.located = urljoin(url, target)
                continue
            try:
                return self._judged(answer, start, end, size)
            except BaseException:
                answer.close()
                raise
        self.located = ""
        raise SourceUnreachable(f"{self.name} redirects more than {MOST_REDIRECTS} times.")

    def _judged(self, answer: aiohttp.ClientResponse, start: int, end: int, size: int) -> Opening:
        status = answer.status
        if status in (200, 206):
            self._check_same(answer)
            return _opening(answer, start, end, size, self.name)
        if self.located and status in (400, 401, 403, 404, 410):  # a signed address has run out: ask for another
            self.located = ""
            raise TryAgain(f"its address was refused with {status}")
        if status in (401, 403):
            raise SourceRefused(f"{self.name}: the source refuses it ({status}).")
        if status in (404, 410):
            raise SourceGone(f"{self.name} is not there ({status}).")
        if status == 416:
            raise SourceChanged(f"{self.name} is shorter than it was.")
        raise TryAgain(f"status {status}", _patience(answer.headers))

    def _check_same(self, answer: aiohttp.ClientResponse) -> None:
        told = answer.headers.get("ETag", "").removeprefix("W/").strip('"')
        if self.has_hash:
            return
        if not self.etag:
            self.etag = told
        elif told and told != self.etag:
            raise SourceChanged(f"{self.name} changed while it was fetched: its ETag is {told}, it was {self.etag}.")


@dataclass
class Opening:
    """An answer with bytes: the first one that comes is that at `start`."""

    answer: aiohttp.ClientResponse
    start: int
    is_whole: bool
    """The range was ignored: all of the file comes."""


def _opening(answer: aiohttp.ClientResponse, start: int, end: int, size: int, name: str) -> Opening:
    if answer.status == 200:
        length = answer.content_length
        if length is not None and length != size:
            raise SourceChanged(f"{name} has {length} bytes, not {size}.")
        return Opening(answer, 0, end - start < size)
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != start or int(match[2]) >= end:
        raise TryAgain(f"another range came than was asked for: {answer.headers.get('Content-Range')}")
    if match[3] != "*" and int(match[3]) != size:
        raise SourceChanged(f"{name} has {match[3]} bytes, not {size}.")
    return Opening(answer, start, False)


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _patience(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: `Retry-After` in either form, or the Hub's `RateLimit: "api";r=0;t=55`."""
    text = headers.get("Retry-After", "").strip()
    seconds: float | None = None
    if text.isdecimal():
        seconds = float(text)
    elif "," in text:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            seconds = None
    elif (match := _RATE_LIMIT.search(headers.get("RateLimit", ""))) is not None:
        seconds = float(match[1])
    return None if seconds is None else min(LONGEST_PAUSE_S, max(0.0, seconds))
