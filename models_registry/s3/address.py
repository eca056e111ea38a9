"""Where a bucket is: `s3://bucket/prefix`, at AWS or at an endpoint of one's own. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from models_registry.errors import BadSource

DEFAULT_REGION = "us-east-1"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_REGION = re.compile(r"[a-z0-9-]{1,40}")


@dataclass(frozen=True)
class Bucket:
    """`prefix` is a folder, or one object, as it turns out."""

    endpoint: str
    region: str
    name: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.name}/{self.prefix}".removesuffix("/")


def bucket_of(address: str, endpoint: str = "", region: str = "") -> Bucket:
    """`address` as `s3://bucket/prefix`. Without `endpoint`, AWS in that region. Raises BadSource."""
    if not address.startswith("s3://"):
        raise BadSource(f"{address[:200]!r} is no bucket.", remedy="Write it as s3://bucket/prefix.")
    name, _, prefix = address.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(name) or len(prefix.encode()) > 1024 or "\0" in prefix:
        raise BadSource(f"{address[:200]!r} names no bucket.", remedy="Write it as s3://bucket/prefix.")
    region = region.strip() or DEFAULT_REGION
    if not _REGION.fullmatch(region):
        raise BadSource(f"{region[:80]!r} is no region.", remedy="Give one such as eu-central-1, or none.")
    return Bucket(_endpoint(endpoint.strip(), region), region, name, prefix)


def _endpoint(endpoint: str, region: str) -> str:
    if not endpoint:
        return f"https://s3.{region}.amazonaws.com"
    try:
        parts = urlsplit(endpoint)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or parts.username is not None or parts.query or parts.fragment or parts.path.strip("/"):
        raise BadSource(f"{endpoint[:200]!r} is no endpoint.", remedy="Write it as https://s3.example.org:9000.")
    return f"{parts.scheme}://{parts.netloc.lower()}"
