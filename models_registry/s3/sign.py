"""AWS Signature Version 4 of a request for an object or a list, in the Authorization header. Pure.

"Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk" of the Amazon S3 API
reference, for GET without a body. The official signers (botocore, the SDKs) bring their own HTTP and 14 MB with them
for these few lines; tests compare ours with botocore's.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_TOLERATED = dt.timedelta(minutes=5)
_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True)
class Credentials:
    """Of an account at the bucket's service. `session_token` for temporary ones."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


class S3Signer:
    """Signs by the service's clock, as soon as that proves to be another one than ours (ours may jump)."""

    def __init__(self, credentials: Credentials, region: str, clock: Callable[[], dt.datetime]) -> None:
        self._credentials = credentials
        self._region = region
        self._clock = clock
        self._ahead = dt.timedelta()  # how much further its clock is

    def headers(self, url: str) -> dict[str, str]:
        return signed_headers(url, self._credentials, self._region, self._clock() + self._ahead)

    def learn(self, date: str) -> bool:
        try:
            told = email.utils.parsedate_to_datetime(date)
        except ValueError:
            return False
        if told.tzinfo is None:
            return False
        ahead = told - self._clock()
        differs = abs(ahead - self._ahead) > _TOLERATED
        self._ahead = ahead if differs else self._ahead
        return differs


def signed_headers(url: str, credentials: Credentials, region: str, now: dt.datetime) -> dict[str, str]:
    """Headers that make a GET of `url` ours. `now`: aware; services accept a quarter of an hour of difference.

    `url` is percent-encoded as `object_url` does, and must be asked for as it is.
    """
    instant = now.astimezone(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {"x-amz-content-sha256": _EMPTY_SHA256, "x-amz-date": instant}
    if credentials.session_token:
        headers["x-amz-security-token"] = credentials.session_token
    parts = urlsplit(url)
    signed = dict(sorted({**headers, "host": parts.netloc}.items()))
    names = ";".join(signed)
    canonical = "\n".join(
        (
            "GET",
            parts.path or "/",
            _canonical_query(parts.query),
            *(f"{name}:{value}" for name, value in signed.items()),
            "",
            names,
            _EMPTY_SHA256,
        )
    )
    scope = f"{instant[:8]}/{region}/s3/aws4_request"
    text = "\n".join((_ALGORITHM, instant, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (instant[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    given = f"Credential={credentials.access_key}/{scope},SignedHeaders={names},Signature={signature}"
    return {**headers, "Authorization": f"{_ALGORITHM} {given}"}


def object_url(endpoint: str, bucket: str, key: str = "", query: Mapping[str, str] | None = None) -> str:
    """Path-style address, encoded as the signature wants it: all but unreserved characters."""
    path = f"{endpoint.rstrip('/')}/{quote(bucket, safe='-_.~')}/{quote(key, safe='/-_.~')}"
    return f"{path.removesuffix('/') if not key else path}?{_query(query)}" if query else path


def _query(query: Mapping[str, str]) -> str:
    return "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in sorted(query.items()))


def _canonical_query(query: str) -> str:
    if not query:
        return ""
    pairs = (pair.partition("=") for pair in query.split("&"))
    return _query({unquote(name): unquote(value) for name, _, value in pairs})


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")
