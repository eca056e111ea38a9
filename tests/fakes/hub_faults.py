"""What the fake Hub notes of each request, what it means to answer, and the faults a test puts in the way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from tests.fakes.hub_repo import HubFile


@dataclass
class Asked:
    """One request as it came, and what was done with it."""

    host: Literal["hub", "cdn"]
    method: str
    path: str
    range: str = ""
    authorization: str = ""
    query: str = ""
    address: str = ""
    """The Host header."""
    repo: str = ""
    file: str = ""
    """Path inside the repository."""
    status: int = 0
    """0 while there is no answer yet."""
    fault: Fault | None = None


@dataclass
class Answer:
    """What a request would get if nothing went wrong: `count` bytes of `body` from `first`."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: HubFile | None = None
    first: int = 0
    count: int = 0
    gzip: bool = False
    link: str = ""
    """Path on the CDN that the Location (still to be signed) will name."""

    @classmethod
    def of(cls, status: int, content: bytes, kind: str, headers: dict[str, str]) -> Answer:
        return cls(status, {"Content-Type": kind, **headers}, HubFile(content), count=len(content))


@dataclass
class Fault:
    """What goes wrong with the next `times` requests (-1: with all) for bytes of `path` (empty: of any file).

    A request meets at most one fault, the first in the list that fits it. What happens to a body fits only a GET that
    gets one, `flip_at` only a request whose bytes hold that place, `ignore_range` only one for a range.
    """

    path: str = ""
    """Of the file in its repository, or of the request; a shell pattern."""
    times: int = 1
    at: Literal["bytes", "hub", "api"] = "bytes"
    """`bytes`: where they are sent from; `hub`: what redirects there; `api`: any request of the API."""
    method: str = ""
    skip: int = 0
    """Let so many requests that it would fit pass first."""

    status: int = 0
    """Answer this instead."""
    retry_after: str = ""
    rate_reset_s: int | None = None
    """Say so in `RateLimit`, as the Hub does with 429 (it was not seen to send `Retry-After`)."""
    hang: bool = False
    """Never answer."""
    redirect_to: str = ""
    """`loop`: to itself, for ever."""
    expired: bool = False
    """At `hub`: sign an address that has run out already; at `bytes`: refuse it as if it had."""
    etag: str = ""
    """Another one: as if the file had changed."""

    cut_after: int | None = None
    """Reset the connection after so many bytes of the body."""
    end_after: int | None = None
    """Close the connection in order after so many, though the headers promised all."""
    stall_after: int | None = None
    """Send nothing more after so many and keep the connection open."""
    truncate_to: int | None = None
    """End the body, without a word, after so many: Content-Length says so, too."""
    pad: int = 0
    """Bytes too many, with a Content-Length to match."""
    content_length: int | None = None
    """One that lies: below the truth the body is clipped to it, above it the connection closes early."""
    flip_at: int | None = None
    """Offset in the file of a byte that arrives wrong."""
    ignore_range: bool = False
    """Give the whole file with 200 where a part was asked for."""
    bytes_per_second: float = 0.0

    def fits(self, asked: Asked, answer: Answer) -> bool:
        """Whether this request, which would get this answer, is one that it can happen to."""
        if self.times == 0 or self.method not in ("", asked.method) or self.at != _kind(asked, answer):
            return False
        if self.path and not any(fnmatchcase(name, self.path) for name in (asked.file, asked.path)):
            return False
        if self.status or self.hang or self.redirect_to or self.expired:
            return True
        if self.etag:
            return bool(answer.link) or "ETag" in answer.headers
        if answer.body is None or answer.status not in (200, 206) or asked.method == "HEAD":
            return False
        if self.flip_at is not None:
            return answer.first <= self.flip_at < answer.first + answer.count
        return answer.status == 206 or not self.ignore_range or self.pad > 0


def _kind(asked: Asked, answer: Answer) -> str:
    if not asked.file:
        return "api"
    return "hub" if answer.status in (302, 307) else "bytes"


def take(faults: Iterable[Fault], asked: Asked, answer: Answer) -> Fault | None:
    """The fault that this request meets, counted down."""
    for fault in faults:
        if not fault.fits(asked, answer):
            continue
        if fault.skip > 0:
            fault.skip -= 1
            continue
        fault.times -= fault.times > 0
        return fault
    return None


_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def part(answer: Answer, wanted: str, if_range: str) -> Answer:
    """The answer for the range asked: 206, 416, or the whole where the range does not count (RFC 9110, 14.2)."""
    assert answer.body is not None
    size = answer.body.size
    answer.count = size
    match = _RANGE.fullmatch(wanted.strip())
    # Several ranges at once get the whole file: a server may, and no downloader should count on parts.
    if match is None or match.groups() == ("", "") or (if_range and if_range != answer.headers["ETag"]):
        return answer
    start, end = match.groups()
    if start and end and int(end) < int(start):
        return answer  # not a valid range: as if there were none
    first = int(start) if start else max(0, size - int(end))
    last = min(int(end), size - 1) if start and end else size - 1
    if first >= size:
        return Answer.of(416, b"", "text/plain", {"Content-Range": f"bytes */{size}"})
    answer.status, answer.first, answer.count = 206, first, last - first + 1
    answer.headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return answer
