"""What a bucket has: ListObjectsV2, page by page. Bytes are the downloader's to fetch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from xml.etree import ElementTree

import aiohttp
from django.utils import timezone

from models_registry.download.downloader import running
from models_registry.download.remote import Remote
from models_registry.errors import BadSource, RegistryError, SourceGone, SourceRefused, SourceUnreachable
from models_registry.s3.address import Bucket
from models_registry.s3.sign import Credentials, S3Signer, object_url
from models_registry.scan import MOST_FILES

_MOST_PAGE_BYTES = 8 << 20
_WAIT_S = 60.0
_NAMESPACE = "{*}"


@dataclass(frozen=True)
class S3Object:
    """An object under the prefix. `etag` changes with its content."""

    key: str
    size: int
    etag: str


def signer(bucket: Bucket, credentials: Credentials | None) -> S3Signer | None:
    """For `Remote.signer`; None: nobody asks."""
    return None if credentials is None else S3Signer(credentials, bucket.region, timezone.now)


def listed(bucket: Bucket, credentials: Credentials | None, *, loopback: bool) -> list[S3Object]:
    """Every object under the prefix, but for markers of folders.

    A prefix that is an object's whole name is that object; else it is a folder.
    Raises BadSource, SourceGone, SourceRefused, SourceUnreachable.
    """
    try:
        return asyncio.run(asyncio.wait_for(_listed(bucket, credentials, loopback), _WAIT_S))
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one of the latter
        raise SourceUnreachable(f"{bucket.endpoint} does not answer: {str(error) or type(error).__name__}.") from error


async def _listed(bucket: Bucket, credentials: Credentials | None, loopback: bool) -> list[S3Object]:
    remote = Remote(object_url(bucket.endpoint, bucket.name), name=str(bucket), signer=signer(bucket, credentials))
    found: list[S3Object] = []
    token = ""
    async with running(1, loopback=loopback) as downloader:
        while True:
            query = {"list-type": "2", "prefix": bucket.prefix, "max-keys": "1000"}
            query |= {"continuation-token": token} if token else {}
            url = object_url(bucket.endpoint, bucket.name, query=query)
            objects, token = await _page(downloader.session, remote, bucket, url)
            found += objects
            if any(one.key == bucket.prefix for one in objects):
                return [one for one in found if one.key == bucket.prefix]
            found = [one for one in found if _is_below(bucket.prefix, one.key)]
            if len(found) > MOST_FILES:
                raise BadSource(
                    f"{bucket} holds more than {MOST_FILES} objects: is this a model's folder?",
                    remedy="Give the prefix of one model.",
                )
            if not token:
                break
    if not found:
        raise SourceGone(f"There is nothing under {bucket}.", remedy="Look at the bucket's name and the prefix.")
    return found


async def _page(session: aiohttp.ClientSession, remote: Remote, bucket: Bucket, url: str) -> tuple[list[S3Object], str]:
    status, date, content = await _got(session, remote, url)
    if status == 403 and remote.signer is not None and remote.signer.learn(date):
        status, date, content = await _got(session, remote, url)
    if status != 200:
        raise _error(bucket, status, content)
    try:
        return _parsed(content)
    except (ElementTree.ParseError, ValueError) as error:
        raise SourceUnreachable(f"{bucket.endpoint} does not answer as a bucket does: {error}.") from error


async def _got(session: aiohttp.ClientSession, remote: Remote, url: str) -> tuple[int, str, bytes]:
    """Status, date and body of an answer."""
    answer = await remote.ask(session, url, {"Accept-Encoding": "identity"})
    async with answer:
        content = bytearray()
        async for data in answer.content.iter_any():
            content += data
            if len(content) > _MOST_PAGE_BYTES:
                raise SourceUnreachable(f"{remote.name}: a page of its list is larger than any of S3.")
        return answer.status, answer.headers.get("Date", ""), bytes(content)


def _parsed(content: bytes) -> tuple[list[S3Object], str]:
    tree = _tree(content)
    if not tree.tag.endswith("ListBucketResult"):
        raise ValueError(f"<{tree.tag}>")
    found = []
    for node in tree.iterfind(f"{_NAMESPACE}Contents"):
        key, size = node.findtext(f"{_NAMESPACE}Key") or "", int(node.findtext(f"{_NAMESPACE}Size") or "")
        etag = (node.findtext(f"{_NAMESPACE}ETag") or "").strip('"')
        if not key.endswith("/"):
            found.append(S3Object(key, size, etag))
    more = (tree.findtext(f"{_NAMESPACE}IsTruncated") or "").lower() == "true"
    return found, (tree.findtext(f"{_NAMESPACE}NextContinuationToken") or "") if more else ""


def _tree(content: bytes) -> ElementTree.Element:
    if b"<!" in content:  # a DTD: S3 sends none, and entities in it could fill the memory
        raise ValueError("it has a document type")
    return ElementTree.fromstring(content)  # noqa: S314 - no DTD, and of a bounded size


def _is_below(prefix: str, key: str) -> bool:
    folder = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
    return key.startswith(folder)


def _error(bucket: Bucket, status: int, content: bytes) -> RegistryError:
    """What went wrong, by the code that S3 gives it ("Error responses" of the Amazon S3 API reference)."""
    code, text, region = "", "", ""
    try:
        tree = _tree(content)
        code, text, region = (tree.findtext(f"{_NAMESPACE}{name}") or "" for name in ("Code", "Message", "Region"))
    except (ElementTree.ParseError, ValueError):
        pass  # something else than S3 has answered: its status must do
    said = f"{bucket}: {text.rstrip('.') or 'refused'} ({code or status})."
    if code in ("NoSuchBucket", "NoSuchKey") or status == 404:
        return SourceGone(said, remedy="Look at the bucket's name, the endpoint and the region.")
    if code == "RequestTimeTooSkewed":
        return SourceRefused(said, remedy="Set the master's clock (NTP): signatures hold for minutes.")
    if status == 301 or code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return SourceRefused(said, remedy=f"Give the region that the bucket is in{f': {region}' if region else ''}.")
    if status in (400, 401, 403):
        return SourceRefused(said, remedy="Look at the access key, the secret, the region, and what the key may do.")
    return SourceUnreachable(said)
