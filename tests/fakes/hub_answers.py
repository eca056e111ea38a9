"""What the fake Hub answers when nothing goes wrong: the API, files, gates, renames, and the CDN's signed addresses."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlencode

from aiohttp import web

from tests.fakes.hub_faults import Answer, Asked, part
from tests.fakes.hub_repo import Content, HubFile, Repo

_SECRET = b"key of the fake CDN"
_TEXT_SUFFIXES = frozenset({".json", ".txt", ".md", ".jinja", ".py"})
DENIED = "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access denied</Message></Error>"
_NO_PAGE = "Sorry, we can't find the page you are looking for."


class Refused(Exception):
    """A request that gets an error or a redirect instead of what it asked for."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if status >= 400:
            self.headers["X-Error-Message"] = message
        if code:
            self.headers["X-Error-Code"] = code

    def answer(self, asked: Asked) -> Answer:
        if asked.host == "hub" and not asked.file:
            body, kind = json.dumps({"error": self.message}), "application/json; charset=utf-8"
        else:
            body, kind = self.message, "text/plain; charset=utf-8"
        return Answer.of(self.status, body.encode(), kind, self.headers)


@dataclass
class AnsweringHub:
    """The Hub without its server: repositories, who may read them, and the answer to each request."""

    signed_for_s: float = 3600.0
    page_size: int | None = None
    """Entries on a page of a list; None: 1000, and 50 of an expanded tree, as on the Hub."""
    resolve_cache: bool = False
    """Send small files by a 307 to a relative `/api/resolve-cache/…`, as the Hub does since 2025."""
    bare_401: bool = False
    """What nobody may know of gets a 401 without `X-Error-Code`, as on the Hub. `huggingface_hub` takes that for
    RepositoryNotFoundError on https addresses only; so the default says RepoNotFound in so many words."""
    gated_trees: bool = False
    """The file tree of a gated repository too is for those let in. (Its model info is public on the Hub.)"""
    gzip_text: bool = False
    """Compress small text files for clients that accept it: no Content-Length, no ranges, a weak ETag."""
    cdn_host: str = "localhost"
    """What the CDN, always on a port of its own, is called; 127.0.0.1: the same host as the Hub."""
    now: Callable[[], float] = time.time
    """The clock that signed addresses expire by."""
    tokens: dict[str, set[str]] = field(default_factory=dict)
    """Token -> private and gated repositories that it may read (`*`: all). Others are refused, if there are any."""
    repos: dict[str, Repo] = field(default_factory=dict)
    port: int = 0
    cdn_port: int = 0
    _links: dict[str, tuple[str, str, HubFile]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn_url(self) -> str:
        return f"http://{self.cdn_host}:{self.cdn_port}"

    def repo(self, name: str, files: Mapping[str, Content | HubFile], **options: Any) -> Repo:
        """Add one, with a commit on main."""
        made = self.repos[name] = Repo(name, **options)
        made.push(files, title="Initial commit")
        return made

    def rename(self, old: str, new: str) -> None:
        """From now on the old name sends to the new one."""
        moved = self.repos[old]
        self.repos[new] = replace(moved, name=new)
        moved.moved_to = new

    def answer(self, request: web.Request, asked: Asked) -> Answer:
        """What this request gets; names the file in `asked`."""
        try:
            return self._from_cdn(request, asked) if asked.host == "cdn" else self._from_hub(request, asked)
        except Refused as refused:
            return refused.answer(asked)

    def sign(self, answer: Answer, for_s: float) -> None:
        """Gives a redirect to the CDN its Location, good for so long."""
        expires = str(int(self.now() + for_s))
        name = PurePosixPath(self._links[answer.link][1]).name
        query = {"response-content-disposition": _disposition(name), "Expires": expires}
        query |= {"Signature": _signature(answer.link, expires), "Key-Pair-Id": "K2FAKE"}
        answer.headers["Location"] = f"{self.cdn_url}{answer.link}?{urlencode(query)}"
        answer.body = HubFile(f"Found. Redirecting to {answer.headers['Location']}".encode())
        answer.count = answer.body.size

    def _from_hub(self, request: web.Request, asked: Asked) -> Answer:
        token = self._token(request)
        parts = [unquote(each) for each in request.rel_url.raw_path.strip("/").split("/")]
        match parts:
            case ["api", "whoami-v2"]:
                if token is None:
                    raise Refused(401, "Invalid username or password.")
                return _json({"type": "user", "name": "tester", "auth": {"accessToken": {"role": "read"}}})
            case ["api", "models"]:
                return self._list(request, token)
            case ["api", "resolve-cache", "models", owner, name, revision, *path]:
                return self._resolve(request, asked, token, f"{owner}/{name}", revision, "/".join(path), cached=True)
            case ["api", "models", *rest]:
                return self._api(request, token, rest)
            case [owner, name, "resolve", revision, *path]:
                return self._resolve(request, asked, token, f"{owner}/{name}", revision, "/".join(path))
            case [name, "resolve", revision, *path]:
                return self._resolve(request, asked, token, name, revision, "/".join(path))
        raise Refused(404, _NO_PAGE)

    def _api(self, request: web.Request, token: str | None, rest: list[str]) -> Answer:
        verbs = ("revision", "tree", "refs")
        # A name from before there were owners (gpt2) has one part; those still redirect.
        parts_of_id = 1 if len(rest) == 1 or rest[1] in verbs else 2
        repo = self._repo(request, token, "/".join(rest[:parts_of_id]))
        match rest[parts_of_id:]:
            case [] | ["revision", _] as named:
                revision = named[1] if named else "main"
                return _json(_expanded(repo.info(_commit(repo, revision), blobs=_says(request, "blobs")), request))
            case ["refs"]:
                return _json(repo.all_refs())
            case ["tree", revision, *under]:
                return self._tree(request, token, repo, revision, "/".join(under))
        raise Refused(404, _NO_PAGE)

    def _tree(self, request: web.Request, token: str | None, repo: Repo, revision: str, under: str) -> Answer:
        commit = _commit(repo, revision)
        if self.gated_trees:
            self._pass_gate(repo, token)
        expand = _says(request, "expand")
        entries = repo.tree(commit, under, recursive=_says(request, "recursive"), expand=expand)
        if entries is None:
            raise Refused(404, f"{under} does not exist on {revision!r}", "EntryNotFound")
        return self._page(request, entries, 50 if expand else 1000)

    def _list(self, request: web.Request, token: str | None) -> Answer:
        query = request.query
        words = query.get("search", "").lower().split()
        found = [repo for repo in self.repos.values() if not repo.moved_to and self._shows(token, repo)]
        found = [repo for repo in found if all(word in repo.name.lower() for word in words)]
        if "author" in query:
            found = [repo for repo in found if repo.author == query["author"]]
        wanted = {*query.getall("filter", []), *query.getall("pipeline_tag", [])}
        found = [repo for repo in found if wanted <= set(repo.all_labels)]
        key = query.get("sort", "downloads")
        found.sort(key=lambda repo: repo.listed(full=True).get(key) or 0, reverse=query.get("direction") != "1")
        expands = any(name in query for name in ("expand", "expand[]"))
        full = _says(request, "full") or expands
        return self._page(request, [_expanded(repo.listed(full=full), request) for repo in found], 1000)

    def _page(self, request: web.Request, items: list[dict[str, Any]], most: int) -> Answer:
        size = min(int(request.query.get("limit", most)), self.page_size or most)
        start = int(base64.urlsafe_b64decode(request.query.get("cursor", "MA==")))
        answer = _json(items[start : start + size])
        if start + size < len(items):
            cursor = base64.urlsafe_b64encode(str(start + size).encode()).decode()
            answer.headers["Link"] = f'<{self.url}{request.rel_url.update_query(cursor=cursor)}>; rel="next"'
        return answer

    def _resolve(
        self,
        request: web.Request,
        asked: Asked,
        token: str | None,
        repo_id: str,
        revision: str,
        path: str,
        *,
        cached: bool = False,
    ) -> Answer:
        asked.repo, asked.file = repo_id, path
        repo = self._repo(request, token, repo_id)
        commit = _commit(repo, revision)
        self._pass_gate(repo, token)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        file = repo.commits[commit].get(path)
        if file is None:
            raise Refused(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit)
        if file.lfs:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.etag}"'}
            place = f"/repos/{hashlib.sha1(f'{repo.uid}/{path}'.encode()).hexdigest()[:24]}/{file.cdn_etag}"
            self._links[place] = (repo.name, path, file)
            return Answer(302, headers, link=place)
        if self.resolve_cache and not cached:
            place = f"/api/resolve-cache/models/{repo.name}/{commit}/{quote(path)}"
            etag = quote(f'"{file.etag}"')
            return Answer(307, {**headers, "Location": f"{place}?{quote(asked.path, safe='')}=&etag={etag}"})
        return self._whole_or_part(request, file, file.etag, headers, PurePosixPath(path))

    def _whole_or_part(
        self, request: web.Request, file: HubFile, etag: str, headers: dict[str, str], path: PurePosixPath
    ) -> Answer:
        text = path.suffix in _TEXT_SUFFIXES
        headers["Content-Type"] = "text/plain; charset=utf-8" if text else "application/octet-stream"
        headers["Content-Disposition"] = _disposition(path.name)
        headers["ETag"] = f'"{etag}"'
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Answer(304, headers)
        if self.gzip_text and text and "gzip" in request.headers.get("Accept-Encoding", ""):
            headers["ETag"] = f'W/"{etag}"'
            return Answer(200, headers, file, count=file.size, gzip=True)
        wanted = request.headers.get("Range", "") if request.method == "GET" else ""
        return part(Answer(200, headers, file), wanted, request.headers.get("If-Range", ""))

    def _token(self, request: web.Request) -> str | None:
        header = request.headers.get("Authorization")
        if header is None:
            return None
        token = header.removeprefix("Bearer ")
        if self.tokens and token not in self.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return token

    def _lets_in(self, token: str | None, repo: Repo) -> bool:
        return token is not None and not self.tokens.get(token, set()).isdisjoint({repo.name, "*"})

    def _shows(self, token: str | None, repo: Repo) -> bool:
        return not repo.private or self._lets_in(token, repo)

    def _repo(self, request: web.Request, token: str | None, name: str) -> Repo:
        # A name in other letters redirects to the right one.
        repo = next((each for each in self.repos.values() if each.name.lower() == name.lower()), None)
        if repo is not None and repo.moved_to:
            repo = self.repos[repo.moved_to]
        if repo is None or not self._shows(token, repo):
            if token is None:
                raise Refused(401, "Invalid username or password.", None if self.bare_401 else "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        if repo.name != name:
            raise Refused(307, "Temporary Redirect", Location=request.raw_path.replace(name, repo.name, 1))
        return repo

    def _pass_gate(self, repo: Repo, token: str | None) -> None:
        if not repo.gated or self._lets_in(token, repo):
            return
        restricted = f"Access to model {repo.name} is restricted"
        if token is None:
            rest = "You must have access to it and be authenticated to access it. Please log in."
            raise Refused(401, f"{restricted}. {rest}", "GatedRepo")
        rest = f"Visit https://huggingface.co/{repo.name} to ask for access."
        raise Refused(403, f"{restricted} and you are not in the authorized list. {rest}", "GatedRepo")

    def _from_cdn(self, request: web.Request, asked: Asked) -> Answer:
        repo_id, path, file = self._links.get(asked.path, ("", "", None))
        asked.repo, asked.file = repo_id, path
        expires = request.query.get("Expires", "0")
        signed = hmac.compare_digest(request.query.get("Signature", ""), _signature(asked.path, expires))
        if file is None or not signed or int(expires) <= self.now():
            raise Refused(403, DENIED)
        return self._whole_or_part(request, file, file.cdn_etag, {"Accept-Ranges": "bytes"}, PurePosixPath(path))


def _signature(place: str, expires: str) -> str:
    return hmac.new(_SECRET, f"{place} {expires}".encode(), hashlib.sha256).hexdigest()


def _disposition(name: str) -> str:
    plain = name.encode("ascii", "replace").decode()
    return f"inline; filename*=UTF-8''{quote(name)}; filename=\"{plain}\";"


def _json(data: Any) -> Answer:
    return Answer.of(200, json.dumps(data).encode(), "application/json; charset=utf-8", {})


def _commit(repo: Repo, revision: str) -> str:
    commit = repo.find(revision)
    if commit is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def _says(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() in ("true", "1")


def _expanded(info: dict[str, Any], request: web.Request) -> dict[str, Any]:
    """Only what `expand` asks for, if it asks."""
    wanted = {*request.query.getall("expand", []), *request.query.getall("expand[]", [])}
    return {key: value for key, value in info.items() if key in {"_id", "id", *wanted}} if wanted else info
