"""A list of URLs as a person, or a program, writes it. Pure.

One a line, `URL [sha256=HEX] [path=PLACE]`, or JSON: `[{"url": ..., "sha256": ..., "path": ...}, "URL", ...]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from models_registry.errors import BadSource
from models_registry.scan import MOST_FILES
from wire.errors import BadMessage
from wire.manifest import check_path

MOST_CHARACTERS = 4000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_OUR_HEADERS = frozenset(
    [
        "host",
        "range",
        "if-range",
        "accept-encoding",
        "content-length",
        "connection",
        "transfer-encoding",
        "te",
        "upgrade",
        "trailer",
        "expect",
        "proxy-authorization",
        "proxy-connection",
        "keep-alive",
    ]
)
_HELP = "Write one URL a line, as in: https://example.org/model.gguf sha256=9f86... path=model.gguf"


class UrlFile(msgspec.Struct, frozen=True):
    """A file to fetch. `path`: its place in the version. `sha256` may be empty."""

    url: str
    path: str
    sha256: str = ""

    @property
    def shown(self) -> str:
        """For people: what comes after `?` may be a secret."""
        return self.url.partition("?")[0]

    @property
    def origin(self) -> tuple[str, str]:
        parts = urlsplit(self.url)
        return parts.scheme, parts.netloc


def parse(given: str | Sequence[str | Mapping[str, Any]]) -> tuple[UrlFile, ...]:
    """The files of a list. Raises BadSource: nothing in it, no URL, an unsafe or doubled place, far too many."""
    entries = _entries(given) if isinstance(given, str) else given
    if len(entries) > MOST_FILES:
        raise BadSource(f"The list has {len(entries)} files; {MOST_FILES} are the most that are taken.", remedy=_HELP)
    files = tuple(_file(entry) for entry in entries)
    if not files:
        raise BadSource("There is no URL in the list.", remedy=_HELP)
    check_places(file.path for file in files)
    return files


def check_places(paths: Iterable[str]) -> None:
    """Raises BadSource unless all can lie in one folder: safe names, none twice, none below another file."""
    seen: set[str] = set()
    for path in paths:
        try:
            check_path(path)
            path.encode()
        except (BadMessage, UnicodeEncodeError) as error:
            raise BadSource(f"The file name {path!r} is not safe.", remedy="Give another with path=...") from error
        if path in seen:
            raise BadSource(f"Two files would be {path!r}.", remedy="Give one of them another place with path=...")
        seen.add(path)
    for path in seen:
        parts = path.split("/")
        for count in range(1, len(parts)):
            if (folder := "/".join(parts[:count])) in seen:
                raise BadSource(f"{folder!r} would be a file, and a folder with {path!r} in it.")


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Raises BadSource: a header that cannot be sent, or that is the downloader's own."""
    if len(headers) > 20:
        raise BadSource("These are more than 20 headers.")
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OUR_HEADERS:
            raise BadSource(f"{name[:100]!r} is no header that can be given.", remedy="Give others, or none.")
        if not value.isprintable() or not value.isascii() or len(value) > MOST_CHARACTERS:
            raise BadSource(f"The value of the header {name} cannot be sent.", remedy="Give printable ASCII text.")
    return dict(headers)


def _entries(text: str) -> Sequence[str | Mapping[str, Any]]:
    stripped = text.strip()
    if not stripped.startswith(("[", "{")):
        lines = (line.strip() for line in stripped.splitlines())
        return [line for line in lines if line and not line.startswith("#")]
    try:
        found = msgspec.json.decode(stripped)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadSource(f"The list is no JSON: {error}.", remedy=_HELP) from error
    return found if isinstance(found, list) else [found]


def _file(entry: str | Mapping[str, Any]) -> UrlFile:
    given = _of_line(entry) if isinstance(entry, str) else entry
    if not isinstance(given, Mapping) or not set(given) <= {"url", "path", "sha256"}:
        raise BadSource(f"{str(entry)[:200]!r} is no entry of a list.", remedy=_HELP)
    if not all(isinstance(value, str) for value in given.values()):
        raise BadSource(f"{str(entry)[:200]!r}: url, path and sha256 are texts.", remedy=_HELP)
    url, sha256 = _checked_url(given.get("url", "")), given.get("sha256", "").lower()
    if sha256 and not _SHA256.fullmatch(sha256):
        raise BadSource(f"{sha256[:80]!r} is no sha256: it has 64 hexadecimal digits.", remedy=_HELP)
    path = given.get("path") or unquote(urlsplit(url).path.rpartition("/")[2])
    if not path:
        raise BadSource(f"{url.partition('?')[0]} names no file.", remedy="Give its place with path=...")
    return UrlFile(url, path, sha256)


def _of_line(line: str) -> dict[str, str]:
    url, *words = line.split()
    found = {"url": url}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in ("sha256", "path") or key in found:
            raise BadSource(f"{word[:100]!r} is neither sha256=... nor path=...", remedy=_HELP)
        found[key] = value
    return found


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or len(url) > MOST_CHARACTERS or not url.isprintable() or " " in url:
        raise BadSource(f"{url[:200]!r} is no http(s) URL.", remedy=_HELP)
    if parts.username is not None or parts.password is not None:
        raise BadSource(
            f"The URL of {parts.hostname} has a password in it.", remedy="Give it as a header, or as a bearer token."
        )
    return url.partition("#")[0]
