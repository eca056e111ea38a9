"""One file at its source: where its bytes come from now, and what an answer to a request for some of them means."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from models_registry.download.guard import ForbiddenAddress
from models_registry.errors import BadSource, SourceChanged, SourceGone, SourceRefused, SourceUnreachable

MOST_REDIRECTS = 5
LONGEST_PAUSE_S = 300.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_RATE_LIMIT = re.compile(r";\s*r=0\s*;\s*t=(\d+)")
_REDIRECTS = (301, 302, 303, 307, 308)
_MODIFIED = "modified "


class TryAgain(Exception):
    """This try failed, another may not. `after_s`: the source asked for so much patience."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Signer(Protocol):
    """Proves who asks, anew for each request: nothing that it makes is old enough to run out."""

    def headers(self, url: str) -> dict[str, str]:
        """To send with a GET of `url`."""
        ...

    def learn(self, date: str) -> bool:
        """A signature was refused at `date` (the answer's header). Whether that was for our clock: sign once more."""
        ...


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
    signer: Signer | None = None
    """Of requests to the host of `url`."""
    located: str = ""
    """Where the last redirect led: asked straight from then on, until it is refused."""

    def __post_init__(self) -> None:
        self.name = self.name or self.url

    async def open(self, session: aiohttp.ClientSession, start: int, end: int, size: int) -> Opening:
        """Ask for bytes `start` to `end` (excluded). Close the answer.

        Raises TryAgain, SourceRefused, SourceGone, SourceChanged, SourceUnreachable, aiohttp.ClientError, TimeoutError.
        """
        headers = {"Range": f"bytes={start}-{end - 1}"} if end - start < size else {}
        answer = await self._follow(session, headers)
        try:
            return self._judged(answer, start, end, size)
        except BaseException:
            answer.close()
            raise

    async def measure(self, session: aiohttp.ClientSession) -> int:
        """Bytes that it has; its `etag` is known from then on. Raises as `open`, and BadSource when it is not told."""
        answer = await self._follow(session, {"Range": "bytes=0-0"})
        try:
            total = _total(answer)
            if answer.status not in (200, 206) and total is None:
                self._refuse(answer)
            if total is None or answer.headers.get("Content-Encoding", "identity") != "identity":
                raise BadSource(
                    f"{self.name}: its server does not say how large it is.",
                    remedy="Give an address that serves the plain file, with a Content-Length.",
                )
            self._check_same(answer)
            return total
        finally:
            answer.close()

    async def _follow(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """The first answer that is no redirect."""
        url = self.located or self.url
        for _ in range(MOST_REDIRECTS + 1):
            answer = await self.ask(session, url, {"Accept-Encoding": "identity", **headers})
            if answer.status not in _REDIRECTS:
                return answer
            target = answer.headers.get("Location", "")
            answer.close()
            if not target:
                raise TryAgain("a redirect without an address")
            url = self.located = urljoin(url, target)
        self.located = ""
        raise SourceUnreachable(f"{self.name} redirects more than {MOST_REDIRECTS} times.")

    async def ask(self, session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """One GET, as who we are when `url` is of our host. Raises SourceRefused for an address that is forbidden."""
        address: str | URL = url
        if _host(url) == _host(self.url):
            headers = {**headers, **self.headers}
            if self.signer is not None:  # what is signed is what must be asked for, to the letter
                address, headers = URL(url, encoded=True), {**headers, **self.signer.headers(url)}
        try:
            return await session.get(address, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ForbiddenAddress):
                raise forbidden(self.name, url) from error
            raise
        except (aiohttp.InvalidURL, ValueError) as error:
            raise SourceGone(f"{self.name} leads to something that is no address.") from error

    def _judged(self, answer: aiohttp.ClientResponse, start: int, end: int, size: int) -> Opening:
        status = answer.status
        if status in (200, 206):
            self._check_same(answer)
            return _opening(answer, start, end, size, self.name)
        self._refuse(answer)

    def _refuse(self, answer: aiohttp.ClientResponse) -> NoReturn:
        status = answer.status
        if self.located and status in (400, 401, 403, 404, 410):  # a signed address has run out: ask for another
            self.located = ""
            raise TryAgain(f"its address was refused with {status}")
        if status == 403 and self.signer is not None and self.signer.learn(answer.headers.get("Date", "")):
            raise TryAgain("its clock and ours differ")
        if status in (401, 403):
            raise SourceRefused(f"{self.name}: the source refuses it ({status}).")
        if status in (404, 410):
            raise SourceGone(f"{self.name} is not there ({status}).")
        if status == 416:
            raise SourceChanged(f"{self.name} is shorter than it was.")
        raise TryAgain(f"status {status}", _patience(answer.headers))

    def _check_same(self, answer: aiohttp.ClientResponse) -> None:
        told = content_of(answer.headers)
        if self.has_hash:
            return
        if not self.etag:
            self.etag = told
        elif told and told != self.etag and told.startswith(_MODIFIED) == self.etag.startswith(_MODIFIED):
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


def content_of(headers: Mapping[str, str]) -> str:
    """What a source calls the content that it sends: its ETag, else when it was changed; empty when neither is told."""
    if etag := headers.get("ETag", "").removeprefix("W/").strip('"'):
        return etag
    changed = headers.get("Last-Modified", "")
    return f"{_MODIFIED}{changed}" if changed else ""


def forbidden(name: str, url: str) -> SourceRefused:
    """A connection that the guard has refused."""
    return SourceRefused(
        f"{name}: {urlsplit(url).hostname} is, or leads to, an address that is never fetched from.",
        remedy="Addresses of this machine, of its link and of a cloud's metadata are refused. For a server on this "
        "machine set STOKEHOLD_FETCH_FROM_LOOPBACK=1.",
    )


def _total(answer: aiohttp.ClientResponse) -> int | None:
    """Size of all of it, by an answer to a request for its first byte; None: not told."""
    if answer.status == 200:
        return answer.content_length
    end = answer.headers.get("Content-Range", "").rpartition("/")[2].strip()
    is_told = answer.status == 206 or (answer.status == 416 and end == "0")  # the latter: an empty file has no byte
    return int(end) if is_told and end.isdecimal() else None


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
            now = _instant(headers.get("Date", ""))  # of the clock that the answer was made by: ours may jump
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
        except ValueError:
            seconds = None
    elif (match := _RATE_LIMIT.search(headers.get("RateLimit", ""))) is not None:
        seconds = float(match[1])
    return None if seconds is None else min(LONGEST_PAUSE_S, max(0.0, seconds))


def _instant(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
