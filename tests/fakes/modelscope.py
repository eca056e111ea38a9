"""A ModelScope for tests: lists of files, their bytes, storage that large ones redirect to, private repositories.

True to what www.modelscope.cn answers its own SDK (`modelscope.hub.api`): `Code`, `Data`, `Message`, `Success` around
everything, `Sha256` of every file, `Type` `tree` or `blob`, `Revision` the commit that changed a file last.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

_LARGE = 1_000_000
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class FakeModelScope:
    """Change its attributes at any time. `private`: repository -> token that may read it."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, str] = field(default_factory=dict)
    without_hashes: bool = False
    more_files: list[dict[str, Any]] = field(default_factory=list)
    """Further entries of every list."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path with query, and Authorization."""
    port: int = 0
    _old: dict[tuple[str, str, str], bytes] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def change(self, repo: str, path: str, content: bytes) -> None:
        """A new commit; the earlier ones stay."""
        before = self.repos[repo][path]
        self._old[repo, path, _commit(before)] = before
        self.repos[repo][path] = content

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path_qs, request.headers.get("Authorization", "")))
        match request.path.strip("/").split("/"):
            case ["api", "v1", "models", org, name, "repo", "files"]:
                return self._list(request, f"{org}/{name}")
            case ["api", "v1", "models", org, name, "repo"]:
                return self._bytes(request, f"{org}/{name}")
            case ["storage", org, name, *path]:
                return _sent(request, self.repos[f"{org}/{name}"]["/".join(path)])
        return web.json_response({"Code": 404, "Message": "not found", "Success": False}, status=404)

    def _may(self, request: web.Request, repo: str) -> bool:
        token = self.private.get(repo)
        return repo in self.repos and (token is None or request.headers.get("Authorization") == f"Bearer {token}")

    def _list(self, request: web.Request, repo: str) -> web.Response:
        if not self._may(request, repo) or request.query.get("Revision") not in ("master", "v1"):
            told = {"Code": 10010205001, "Message": "record not found", "RequestId": "", "Success": False}
            return web.json_response(told, status=404)
        entries = [self._entry(path, content) for path, content in self.repos[repo].items()]
        folders = {path.rpartition("/")[0] for path in self.repos[repo] if "/" in path}
        trees = [{"Name": folder, "Path": folder, "Type": "tree", "Size": 0, "Sha256": ""} for folder in folders]
        data = {"Files": [*trees, *entries, *self.more_files], "IsVisual": 0}
        return web.json_response({"Code": 200, "Data": data, "Message": "success", "Success": True})

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        sha256 = "" if self.without_hashes else hashlib.sha256(content).hexdigest()
        about = {"IsLFS": len(content) >= _LARGE, "Mode": "33188", "Revision": _commit(content), "Sha256": sha256}
        return {"Name": path.rpartition("/")[2], "Path": path, "Type": "blob", "Size": len(content), **about}

    def _bytes(self, request: web.Request, repo: str) -> web.StreamResponse:
        path, revision = request.query.get("FilePath", ""), request.query.get("Revision", "")
        if not self._may(request, repo) or path not in self.repos[repo]:
            return web.json_response({"Code": 404, "Message": "not found", "Success": False}, status=404)
        content = self.repos[repo][path]
        if revision not in ("master", "v1", _commit(content)):
            return _sent(request, self._old[repo, path, revision])
        if len(content) >= _LARGE:
            place = f"http://localhost:{self.port}/storage/{repo}/{path}?auth_key=1"
            return web.Response(status=302, headers={"Location": place})
        return _sent(request, content)


def _commit(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _sent(request: web.Request, content: bytes) -> web.Response:
    match = _RANGE.fullmatch(request.headers.get("Range", ""))
    if match is None:
        return web.Response(body=content)
    start, end = int(match[1]), min(len(content), int(match[2] or len(content)) + 1)
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    return web.Response(status=206, body=content[start:end], headers=headers)


@contextmanager
def serving_modelscope(fake: FakeModelScope) -> Iterator[FakeModelScope]:
    """On loopback, from a thread of its own; `fake.url` is set."""
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", fake.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.port = int(runner.addresses[0][1])
        stop = asyncio.Event()
        ready.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="fake ModelScope")
    thread.start()
    loop, stop = ready.result(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
