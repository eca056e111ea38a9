"""As much of multipart/form-data (RFC 7578) as the gateway needs: read short text fields, put another value into one.

The file in it is never decoded or copied but once, and passes to the engine byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gateway.errors import GatewayError

_BOUNDARY = re.compile(rb'boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="([^"\r\n]*)"')
_FILE = re.compile(rb"[;\s]filename\*?=", re.IGNORECASE)
_MAX_PARTS = 100
_MAX_HEAD_BYTES = 4096
_MAX_VALUE_BYTES = 1024


def fields(body: bytes, content_type: bytes, names: Sequence[str]) -> dict[str, str]:
    """Values of these text fields, as far as they are there. Raises GatewayError 400 for what is no form, and for a
    field that comes twice: an engine might take the other one."""
    found: dict[str, str] = {}
    for name, start, end in _parts(body, content_type):
        if name not in names:
            continue
        if name in found:
            raise _bad(f"The field '{name}' comes twice.")
        if end - start > _MAX_VALUE_BYTES:
            raise _bad(f"The field '{name}' is too long.")
        try:
            found[name] = body[start:end].decode()
        except UnicodeDecodeError as error:
            raise _bad(f"The field '{name}' is not UTF-8.") from error
    return found


def with_field(body: bytes, content_type: bytes, name: str, value: str) -> bytes:
    """The form with another value in a field that it has."""
    for found, start, end in _parts(body, content_type):
        if found == name:
            return b"".join((body[:start], value.encode(), body[end:]))
    return body


def _parts(body: bytes, content_type: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, start, end of its value) of each part that is no file."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise _bad("The content type names no boundary.")
    mark = b"--" + (match[1] or match[2])
    if not body.startswith(mark):
        raise _bad("The form does not begin with its boundary.")
    at = len(mark)
    for _ in range(_MAX_PARTS):
        if body[at : at + 2] == b"--":
            return
        if body[at : at + 2] != b"\r\n":
            raise _bad("A boundary is not followed by a new line.")
        head_end = body.find(b"\r\n\r\n", at, at + _MAX_HEAD_BYTES)
        end = body.find(b"\r\n" + mark, head_end + 2)
        if head_end < 0 or end < 0:
            raise _bad("A part of it has no end.")
        head = body[at:head_end]
        name = _NAME.search(head)
        if name is not None and _FILE.search(head) is None:
            yield name[1].decode("utf-8", "replace"), head_end + 4, max(head_end + 4, end)
        at = end + 2 + len(mark)
    raise _bad("The form has too many parts.")


def _bad(message: str) -> GatewayError:
    return GatewayError(400, "invalid_request", f"The multipart form cannot be read. {message}")
