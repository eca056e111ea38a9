"""A Hugging Face Hub, true to the documented API as far as finding and fetching models goes.

The hub answers `/api/models...` and `/NAMESPACE/NAME/resolve/REVISION/PATH`; large files (LFS) are redirected to a
second server, as the Hub does to its CDN, with a signed address that expires. Faults on demand, see `Fault`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

_PIECE_BYTES = 256 * 1024
_SIGNED_WITH = b"the cdn's secret"


@dataclass(frozen=True)
class HubFile:
    """`content`: bytes, or a file on disk for what is too large for memory. Large ones are `lfs`."""

    content: bytes | Path
    lfs: bool = False

    @cached_property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @cached_property
    def sha256(self) -> str:
        return self._digest(hashlib.sha256())

    @cached_property
    def git_sha1(self) -> str:
        return self._digest(hashlib.sha1(b"blob %d\0" % self.size))

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_sha1

    def read(self, start: int, count: int) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[start : start + count]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(count)

    def _digest(self, digest: Any) -> str:
        for start in range(0, self.size, 1 << 20):
            digest.update(self.read(start, 1 << 20))
        return str(digest.hexdigest())


@dataclass
class Repo:
    """One model repository. `push` makes a commit on a branch."""

    name: str
    private: bool = False
    gated: str = ""
    """`auto` or `manual`: a token that was granted access is needed."""
    license: str = "apache-2.0"
    moved_to: str = ""
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def push(self, files: dict[str, HubFile], branch: str = "main") -> str:
        """A commit with these files and no others; its name."""
        told = f"{self.name}{branch}{len(self.commits)}{sorted((path, file.etag) for path, file in files.items())}"
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        found = self.refs.get(revision) or self.tags.get(revision)
        if found is None and len(revision) >= 7:
            found = next((commit for commit in self.commits if commit.startswith(revision)), None)
        return found


@dataclass
class Fault:
    """What goes wrong with the next `times` requests for bytes of `path` (empty: of any file)."""

    path: str = ""
    times: int = 1
    at: str = "bytes"
    """`bytes`: where they are sent from; `hub`: the resolving request of an LFS file; `api`: any API request."""
    status: int = 0
    """Answer this instead."""
    retry_after: str = ""
    cut_after: int | None = None
    """Break the connection after so many bytes of the body."""
    stall_after: int | None = None
    """Send nothing more after so many."""
    truncate_to: int | None = None
    """End the body, without a word, after so many: Content-Length says so, too."""
    pad: int = 0
    """Bytes too many, with a Content-Length to match."""
    flip_at: int | None = None
    """Offset in the file of a byte that arrives wrong."""
    ignore_range: bool = False
    etag: str = ""
    """Another one: as if the file had changed."""
    bytes_per_second: float = 0.0
    redirect_to: str = ""
    """`loop`: to itself, for ever."""


@dataclass
class Asked:
    """One request that came."""

    host: str
    """`hub` or `cdn`."""
    method: str
    path: str
    range: str
    authorization: str


@dataclass
class FakeHub:
    """Change its attributes at any time; the next request does as they say."""

    repos: dict[str, Repo] = field(default_factory=dict)
    tokens: dict[str, set[str]] = field(default_factory=dict)
    """Token -> repositories that it may see although they are private or gated."""
    faults: list[Fault] = field(default_factory=list)
    latency_s: float = 0.0
    bytes_per_second: float = 0.0
    """Of each connection; 0: as fast as it goes."""
    signed_for_s: float = 3600.0
    asked: list[Asked] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of each file."""
    open: int = 0
    most_open: int = 0
    url: str = ""
    cdn_url: str = ""

    def repo(self, name: str, files: dict[str, HubFile], **options: Any) -> Repo:
        """Add one, with a commit on main."""
        made = self.repos[name] = Repo(name, **options)
        made.push(files)
        return made

    def apps(self) -> tuple[web.Application, web.Application]:
        """(hub, cdn)"""
        hub, cdn = web.Application(), web.Application()
        hub.router.add_get("/api/models", self._search)
        hub.router.add_get("/api/models/{ns}/{name}", self._info)
        hub.router.add_get("/api/models/{ns}/{name}/revision/{revision}", self._info)
        hub.router.add_get("/api/models/{ns}/{name}/tree/{revision}", self._tree)
        hub.router.add_get("/api/models/{ns}/{name}/refs", self._refs)
        hub.router.add_get("/{ns}/{name}/resolve/{revision}/{path:.+}", self._resolve)
        cdn.router.add_get("/{sha256}", self._cdn)
        return hub, cdn

    # ---------------------------------------------------------------------------------------- the API

    async def _search(self, request: web.Request) -> web.StreamResponse:
        if (refused := await self._enter(request, "api")) is not None:
            return refused
        words = request.query.get("search", "").lower()
        limit, offset = int(request.query.get("limit", 1000)), int(request.query.get("cursor", 0))
        seen = [one for one in self.repos.values() if self._may_see(one, request) and words in one.name.lower()]
        page = [self._summary(one) for one in seen[offset : offset + limit]]
        headers = {}
        if offset + limit < len(seen):
            query = urlencode({**request.query, "cursor": str(offset + limit)})
            headers["Link"] = f'<{self.url}/api/models?{query}>; rel="next"'
        return web.json_response(page, headers=headers)

    async def _info(self, request: web.Request) -> web.StreamResponse:
        found = await self._find(request, "api")
        if isinstance(found, web.StreamResponse):
            return found
        repo, commit = found
        siblings = [_sibling(path, file, "blobs" in request.query) for path, file in repo.commits[commit].items()]
        used = sum(file.size for file in repo.commits[commit].values())
        return web.json_response({**self._summary(repo), "sha": commit, "siblings": siblings, "usedStorage": used})

    async def _tree(self, request: web.Request) -> web.StreamResponse:
        found = await self._find(request, "api")
        if isinstance(found, web.StreamResponse):
            return found
        repo, commit = found
        return web.json_response([_tree_item(path, file) for path, file in repo.commits[commit].items()])

    async def _refs(self, request: web.Request) -> web.StreamResponse:
        found = await self._find(request, "api", revision="main")
        if isinstance(found, web.StreamResponse):
            return found
        repo, _ = found
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in repo.refs.items()]
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in repo.tags.items()]
        return web.json_response({"branches": branches, "tags": tags, "converts": []})

    def _summary(self, repo: Repo) -> dict[str, Any]:
        return {
            "_id": hashlib.md5(repo.name.encode()).hexdigest()[:24],
            "id": repo.name,
            "modelId": repo.name,
            "author": repo.name.partition("/")[0],
            "private": repo.private,
            "gated": repo.gated or False,
            "disabled": False,
            "downloads": 1234,
            "likes": 12,
            "pipeline_tag": "text-generation",
            "library_name": "transformers",
            "tags": ["text-generation", f"license:{repo.license}"],
            "cardData": {"license": repo.license},
            "createdAt": "2026-01-01T00:00:00.000Z",
            "lastModified": "2026-02-01T00:00:00.000Z",
        }

    # ---------------------------------------------------------------------------------------- files

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        found = await self._find(request, "hub")
        if isinstance(found, web.StreamResponse):
            return found
        repo, commit = found
        path = request.match_info["path"]
        file = repo.commits[commit].get(path)
        if file is None:
            return _error(404, "EntryNotFound", "Entry not found")
        if repo.gated and not self._is_granted(repo, request):
            return _error(403 if _token(request) else 401, "GatedRepo", f"Access to model {repo.name} is restricted.")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.git_sha1}"', "Accept-Ranges": "bytes"}
        if not file.lfs:
            return await self._send(request, path, file, headers)
        fault = self._fault(path, "hub")
        if fault is not None and fault.status:
            return _failed(fault)
        until = int(time.time() + self.signed_for_s)
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
        location = f"{self.cdn_url}/{file.sha256}?Expires={until}&Signature={_signature(file.sha256, until)}"
        if fault is not None and fault.redirect_to:
            location = str(request.url) if fault.redirect_to == "loop" else fault.redirect_to
        return web.Response(status=302, headers={**headers, "Location": f"{location}"}, text="Found. Redirecting")

    async def _cdn(self, request: web.Request) -> web.StreamResponse:
        self._note(request, "cdn")
        await asyncio.sleep(self.latency_s)
        sha256, until = request.match_info["sha256"], request.query.get("Expires", "0")
        if request.query.get("Signature") != _signature(sha256, int(until)) or int(until) <= time.time():
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
        for repo in self.repos.values():
            for files in repo.commits.values():
                for path, file in files.items():
                    if file.lfs and file.sha256 == sha256:
                        return await self._send(request, path, file, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
        return web.Response(status=404)

    async def _send(
        self, request: web.Request, path: str, file: HubFile, headers: dict[str, str]
    ) -> web.StreamResponse:
        fault = self._fault(path, "bytes") or Fault()
        if fault.status:
            return _failed(fault)
        start, end = 0, file.size
        status = 200
        if fault.etag:
            headers["ETag"] = f'"{fault.etag}"'
        asked = request.headers.get("Range", "")
        if asked and not fault.ignore_range:
            span = _span(asked, file.size)
            if span is None:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{file.size}"})
            start, end = span
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{file.size}"
        length = end - start + fault.pad
        if fault.truncate_to is not None:
            length = min(length, fault.truncate_to)
        headers["Content-Length"] = str(length)
        response = web.StreamResponse(status=status, headers=headers)
        response.content_type = "application/octet-stream"
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        await self._body(request, response, path, file, start, length, fault)
        return response

    async def _body(
        self,
        request: web.Request,
        response: web.StreamResponse,
        path: str,
        file: HubFile,
        start: int,
        length: int,
        fault: Fault,
    ) -> None:
        rate = fault.bytes_per_second or self.bytes_per_second
        piece_bytes = min(_PIECE_BYTES, max(1024, int(rate / 10))) if rate else _PIECE_BYTES
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        began, sent = time.monotonic(), 0
        try:
            while sent < length:
                piece = file.read(start + sent, min(piece_bytes, length - sent)) or b"\0" * min(
                    piece_bytes, length - sent
                )
                if fault.flip_at is not None and 0 <= (at := fault.flip_at - start - sent) < len(piece):
                    piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
                for limit in (fault.cut_after, fault.stall_after):
                    if limit is not None:
                        piece = piece[: max(0, limit - sent)]
                if piece:
                    await response.write(piece)
                sent += len(piece)
                self.sent[path] += len(piece)
                if fault.cut_after is not None and sent >= fault.cut_after:
                    assert request.transport is not None
                    request.transport.close()
                    return
                if fault.stall_after is not None and sent >= fault.stall_after:
                    await asyncio.sleep(3600)
                if rate and (ahead := sent / rate - (time.monotonic() - began)) > 0:
                    await asyncio.sleep(ahead)
            await response.write_eof()
        finally:
            self.open -= 1

    # ---------------------------------------------------------------------------------------- parts

    async def _enter(self, request: web.Request, at: str) -> web.StreamResponse | None:
        self._note(request, "hub")
        await asyncio.sleep(self.latency_s)
        fault = self._fault("", at) if at == "api" else None
        return _failed(fault) if fault is not None and fault.status else None

    async def _find(
        self, request: web.Request, at: str, revision: str | None = None
    ) -> tuple[Repo, str] | web.StreamResponse:
        if (refused := await self._enter(request, at)) is not None:
            return refused
        name = f"{request.match_info['ns']}/{request.match_info['name']}"
        repo = self.repos.get(name)
        if repo is not None and repo.moved_to:
            return web.Response(status=307, headers={"Location": str(request.url).replace(name, repo.moved_to, 1)})
        if repo is None or not self._may_see(repo, request):
            status = 404 if _token(request) and repo is None else 401  # the Hub does not tell who cannot see it
            return _error(status, "RepoNotFound", "Repository not found")
        revision = revision or request.match_info.get("revision", "main")
        commit = repo.find(revision)
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit

    def _may_see(self, repo: Repo, request: web.Request) -> bool:
        return not repo.private or self._is_granted(repo, request)

    def _is_granted(self, repo: Repo, request: web.Request) -> bool:
        return repo.name in self.tokens.get(_token(request), set())

    def _fault(self, path: str, at: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.at == at and (not fault.path or fault.path == path):
                fault.times -= 1
                return fault
        return None

    def _note(self, request: web.Request, host: str) -> None:
        headers = request.headers
        self.asked.append(
            Asked(host, request.method, request.path, headers.get("Range", ""), headers.get("Authorization", ""))
        )


@asynccontextmanager
async def running_hub(hub: FakeHub) -> AsyncIterator[FakeHub]:
    """Serve it in this loop, on two ports of loopback."""
    runners = []
    for app, attribute in zip(hub.apps(), ("url", "cdn_url"), strict=True):
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        setattr(hub, attribute, f"http://{'127.0.0.1' if attribute == 'url' else 'localhost'}:{port}")
        runners.append(runner)
    try:
        yield hub
    finally:
        for runner in runners:
            await runner.cleanup()


@contextmanager
def serving_hub(hub: FakeHub) -> Iterator[FakeHub]:
    """The same in a thread, for tests that are not asynchronous."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        async with running_hub(hub):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    if not ready.wait(10):
        raise RuntimeError("the hub did not start")
    try:
        yield hub
    finally:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def _token(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ").strip()


def _signature(sha256: str, until: int) -> str:
    return hmac.new(_SIGNED_WITH, f"{sha256}{until}".encode(), hashlib.sha256).hexdigest()


def _failed(fault: Fault) -> web.Response:
    headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
    return web.Response(status=fault.status, headers=headers, text="not now")


def _error(status: int, code: str, message: str) -> web.Response:
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    return web.json_response({"error": message}, status=status, headers=headers)


def _span(header: str, size: int) -> tuple[int, int] | None:
    """Of a single range; None when none of its bytes are there."""
    first, _, last = header.removeprefix("bytes=").partition("-")
    start, end = (int(first), int(last) + 1 if last else size) if first else (max(0, size - int(last)), size)
    end = min(end, size)
    return (start, end) if start < end else None


def _sibling(path: str, file: HubFile, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    told: dict[str, Any] = {"rfilename": path, "size": file.size, "blobId": file.git_sha1}
    return {**told, "lfs": _lfs(file)} if file.lfs else told


def _tree_item(path: str, file: HubFile) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "file", "oid": file.git_sha1, "size": file.size, "path": path}
    return {**told, "lfs": {**_lfs(file), "oid": file.sha256}} if file.lfs else told


def _lfs(file: HubFile) -> dict[str, Any]:
    return {"sha256": file.sha256, "size": file.size, "pointerSize": 135}
