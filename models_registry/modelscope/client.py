"""What a repository of ModelScope has, by its REST API (as its own SDK, `modelscope.hub.api`, asks it).

GET /api/v1/models/ORG/NAME/repo/files?Revision=R&Recursive=true gives `Data.Files`; the bytes of one are at
/api/v1/models/ORG/NAME/repo?Revision=R&FilePath=P, which redirects to storage for large ones.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from models_registry.download.downloader import running
from models_registry.download.remote import Remote
from models_registry.errors import BadSource, SourceGone, SourceRefused, SourceUnreachable
from models_registry.scan import MOST_FILES
from wire.errors import BadMessage
from wire.manifest import check_path

DEFAULT_REVISION = "master"
_WAIT_S = 30.0
_MOST_BYTES = 64 << 20
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"[\w./-]{1,200}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ScopeFile:
    """`revision` has this very content for ever, when it is a commit. `sha256` may be empty."""

    path: str
    size: int
    sha256: str
    revision: str


class _Entry(msgspec.Struct, rename="pascal"):
    path: str
    type: str = "blob"
    size: int = 0
    sha256: str | None = None
    revision: str | None = None


class _Data(msgspec.Struct, rename="pascal"):
    files: list[_Entry] | None = None


class _Answer(msgspec.Struct, rename="pascal"):
    data: _Data | None = None
    message: str | None = None
    success: bool = True


class ModelScope:
    """One ModelScope, as somebody with this token (empty: nobody) sees it."""

    def __init__(self, endpoint: str, token: str = "") -> None:
        self.endpoint = endpoint.rstrip("/")
        self.token = token

    @property
    def headers(self) -> dict[str, str]:
        """For our endpoint; never for where it redirects. Older ones read the cookie."""
        if not self.token:
            return {}
        return {"Authorization": f"Bearer {self.token}", "Cookie": f"m_session_id={self.token}"}

    def files(self, repo: str, revision: str = DEFAULT_REVISION) -> tuple[ScopeFile, ...]:
        """Raises BadSource, SourceGone, SourceRefused, SourceUnreachable."""
        if not _REPO.fullmatch(repo) or not _REVISION.fullmatch(revision):
            raise BadSource(
                f"{f'{repo}@{revision}'[:300]!r} is no repository.",
                remedy="Write it as ms://ORG/NAME, or ms://ORG/NAME@REVISION.",
            )
        url = (
            f"{self.endpoint}/api/v1/models/{repo}/repo/files?{urlencode({'Revision': revision, 'Recursive': 'true'})}"
        )
        try:
            status, content = asyncio.run(asyncio.wait_for(self._get(repo, url), _WAIT_S))
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one of the latter
            raise self._away(str(error) or type(error).__name__) from error
        return self._judged(repo, revision, status, content)

    def url(self, repo: str, file: ScopeFile) -> str:
        """Where a file's bytes are asked for."""
        query = urlencode({"Revision": file.revision, "FilePath": file.path}, quote_via=quote, safe="")
        return f"{self.endpoint}/api/v1/models/{repo}/repo?{query}"

    async def _get(self, repo: str, url: str) -> tuple[int, bytes]:
        async with running(1) as downloader:
            answer = await Remote(url, self.headers, name=repo).ask(downloader.session, url, {})
            async with answer:
                content = bytearray()
                async for data in answer.content.iter_any():
                    content += data
                    if len(content) > _MOST_BYTES:
                        raise BadSource(f"{repo}: its list of files is larger than any model's.")
                return answer.status, bytes(content)

    def _judged(self, repo: str, revision: str, status: int, content: bytes) -> tuple[ScopeFile, ...]:
        try:
            answer = msgspec.json.decode(content, type=_Answer)
        except (msgspec.DecodeError, RecursionError) as error:
            if status == 200:
                raise self._away(f"{error}") from error
            answer = _Answer(success=False)
        if status in (401, 403):
            raise SourceRefused(f"{repo}: ModelScope refuses it: {answer.message or status}.")
        if status == 404 or (status < 500 and not answer.success):
            raise SourceGone(
                f"There is no {repo}@{revision}, or this token may not see it: {answer.message or status}.",
                remedy="Look at the name and the revision; for a private one give a token that may read it.",
            )
        if status != 200 or answer.data is None or answer.data.files is None:
            raise self._away(f"{answer.message or status}")
        return _files(repo, revision, answer.data.files)

    def _away(self, reason: str) -> SourceUnreachable:
        return SourceUnreachable(
            f"ModelScope ({self.endpoint}) does not answer: {reason.rstrip('.')}.",
            remedy="Look at the network of the master, and at MODELSCOPE_ENDPOINT; then try again.",
        )


def _files(repo: str, revision: str, entries: list[_Entry]) -> tuple[ScopeFile, ...]:
    found = [entry for entry in entries if entry.type != "tree"]
    if len(found) > MOST_FILES:
        raise BadSource(f"{repo} has {len(found)} files; {MOST_FILES} are the most that are taken.")
    files = []
    for entry in found:
        try:
            path = check_path(entry.path)
        except BadMessage as error:
            raise BadSource(f"{repo} names a file {entry.path!r}, which is not safe to write.") from error
        sha256 = (entry.sha256 or "").lower()
        commit = entry.revision or ""
        files.append(
            ScopeFile(
                path,
                entry.size,
                sha256 if _SHA256.fullmatch(sha256) else "",
                commit if _COMMIT.fullmatch(commit) else revision,
            )
        )
    return tuple(files)
