"""Repositories of the fake Hub: contents without memory, commits, refs, and the JSON the Hub gives of them.

Shapes as `huggingface_hub` 2.4 reads them (`ModelInfo`, `RepoFile`, `GitRefs`) and as the public API answers
(observed responses of 2026): https://huggingface.co/docs/hub/api, https://huggingface.co/.well-known/openapi.json.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

# What .gitattributes of a new repository on the Hub sends to LFS (the common ones).
LFS_SUFFIXES = frozenset(
    {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".model", ".zip", ".tar", ".gz"}
)
# The Hub refuses larger files in plain git.
LARGEST_IN_GIT_BYTES = 10 << 20
_EPOCH = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
_PIECE_BYTES = 1 << 20
# A prime, so that pieces of the same size at other places never hold the same bytes.
_PATTERN_BYTES = 1_048_573


@dataclass(frozen=True)
class Synthetic:
    """Content that is made when it is read: `read(offset, count)` gives exactly `count` bytes.

    Give `sha256` where it is known (or does not matter): to hash tens of gigabytes takes minutes.
    """

    size: int
    read: Callable[[int, int], bytes]
    sha256: str | None = None


@lru_cache(maxsize=4)
def _pattern(seed: int) -> bytes:
    return random.Random(seed).randbytes(_PATTERN_BYTES)


def synthetic(size: int, seed: int = 0, sha256: str | None = None) -> Synthetic:
    """Random-looking content of any size, the same for the same seed; pieces put in wrong places show."""

    def read(offset: int, count: int) -> bytes:
        pattern = _pattern(seed)
        start = offset % _PATTERN_BYTES
        repeats = (start + count) // _PATTERN_BYTES + 1
        return (pattern * repeats)[start : start + count] if repeats > 1 else pattern[start : start + count]

    return Synthetic(size, read, sha256)


Content = bytes | Path | Synthetic


@dataclass(frozen=True)
class HubFile:
    """What one file holds at one commit; each hash is made once, when first asked for. Large ones are `lfs`."""

    content: Content
    lfs: bool = False

    @cached_property
    def size(self) -> int:
        if isinstance(self.content, Path):
            return self.content.stat().st_size
        return self.content.size if isinstance(self.content, Synthetic) else len(self.content)

    @cached_property
    def sha256(self) -> str:
        given = self.content.sha256 if isinstance(self.content, Synthetic) else None
        return given or self._digest(hashlib.sha256())

    @cached_property
    def pointer(self) -> bytes:
        """The text that git holds in place of an LFS file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return text.encode()

    @cached_property
    def git_sha1(self) -> str:
        """git's name of the content, or of the pointer of an LFS file."""
        if self.lfs:
            return hashlib.sha1(b"blob %d\0" % len(self.pointer) + self.pointer).hexdigest()
        return self._digest(hashlib.sha1(b"blob %d\0" % self.size))

    @property
    def etag(self) -> str:
        """As the Hub names it: sha256 of an LFS file, git's sha1 of another; without quotes."""
        return self.sha256 if self.lfs else self.git_sha1

    @cached_property
    def cdn_etag(self) -> str:
        """The CDN's own: 64 hex digits too (the Xet hash), and never the sha256 of the bytes."""
        return hashlib.sha256(f"xet {self.sha256}".encode()).hexdigest()

    @contextmanager
    def opened(self) -> Iterator[Callable[[int, int], bytes]]:
        """A function `(offset, count) -> bytes`, good inside the block."""
        content = self.content
        if isinstance(content, bytes):
            yield lambda offset, count: content[offset : offset + count]
        elif isinstance(content, Synthetic):
            yield content.read
        else:
            descriptor = os.open(content, os.O_RDONLY)
            try:
                yield lambda offset, count: os.pread(descriptor, count, offset)
            finally:
                os.close(descriptor)

    def _digest(self, digest: Any) -> str:
        with self.opened() as read:
            for offset in range(0, self.size, _PIECE_BYTES):
                digest.update(read(offset, min(_PIECE_BYTES, self.size - offset)))
        return str(digest.hexdigest())


def hub_file(path: str, content: Content | HubFile) -> HubFile:
    """In LFS by its name and size as on the Hub, unless it is a HubFile that says so itself."""
    if isinstance(content, HubFile):
        return content
    plain = HubFile(content)
    return HubFile(content, lfs=PurePosixPath(path).suffix in LFS_SUFFIXES or plain.size > LARGEST_IN_GIT_BYTES)


@dataclass
class Repo:
    """A model repository; change its attributes at any time. `push` and `change` make commits."""

    name: str
    private: bool = False
    gated: Literal["", "auto", "manual"] = ""
    """A token that was granted access is needed for its files."""
    license: str = "apache-2.0"
    moved_to: str = ""
    labels: tuple[str, ...] = ("transformers", "safetensors")
    """Tags of the model, beside those of its task and license."""
    pipeline_tag: str = "text-generation"
    downloads: int = 1234
    likes: int = 12
    extra: dict[str, Any] = field(default_factory=dict)
    """Put into the model info as it is (`config`, `gguf`, `safetensors`, `disabled`)."""
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    """Branches."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of git."""
    titles: dict[str, str] = field(default_factory=dict)
    """Of commits."""
    uid: str = ""
    """`_id`, which stays when the repository is renamed."""

    def __post_init__(self) -> None:
        self.uid = self.uid or hashlib.sha1(self.name.encode()).hexdigest()[:24]

    def push(self, files: Mapping[str, Content | HubFile], branch: str = "main", title: str = "Upload files") -> str:
        """A commit with these files and no others; its name. Older ones stay readable."""
        held = {path: hub_file(path, content) for path, content in files.items()}
        for file in held.values():
            if file.lfs:
                _ = file.sha256  # now, and not while the first request waits
        told = f"{self.uid}{branch}{len(self.commits)}{sorted((path, file.size) for path, file in held.items())}"
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.commits[commit], self.titles[commit], self.refs[branch] = held, title, commit
        return commit

    def change(self, files: Mapping[str, Content | HubFile | None], branch: str = "main") -> str:
        """A commit with these files changed or added (`None`: removed) and the others as they were; its name."""
        before = self.commits[self.refs[branch]]
        held = {path: content for path, content in {**before, **files}.items() if content is not None}
        return self.push(held, branch)

    def find(self, revision: str) -> str | None:
        """The commit of a branch, a tag, or a full or short (from 7 digits) commit."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        found = self.refs.get(name) or self.tags.get(name)
        if found is None and len(name) >= 7:
            found = next((commit for commit in self.commits if commit.startswith(name)), None)
        return found

    def _date(self, commit: str) -> str:
        return _instant(_EPOCH + dt.timedelta(minutes=list(self.commits).index(commit)))

    @property
    def author(self) -> str:
        return self.name.partition("/")[0]

    @property
    def all_labels(self) -> list[str]:
        return [*self.labels, self.pipeline_tag, f"license:{self.license}", "region:us"]

    def listed(self, *, full: bool) -> dict[str, Any]:
        """As in the list of models, where author, gate and dates come only with `full` (or `expand`)."""
        short = {
            "_id": self.uid,
            "id": self.name,
            "likes": self.likes,
            "trendingScore": 0,
            "private": self.private,
            "downloads": self.downloads,
            "tags": self.all_labels,
            "pipeline_tag": self.pipeline_tag,
            "library_name": "transformers",
            "createdAt": _instant(_EPOCH),
            "modelId": self.name,
        }
        if not full:
            return short
        commit = self.refs["main"]
        more = {"author": self.author, "gated": self.gated or False, "lastModified": self._date(commit), "sha": commit}
        return {**short, **more, "siblings": [{"rfilename": path} for path in sorted(self.commits[commit])]}

    def info(self, commit: str, *, blobs: bool) -> dict[str, Any]:
        """As `/api/models/ID` gives it; with `blobs`, sizes and hashes of files."""
        # By identity: an unchanged file is the same in every commit, and this must not hash anything.
        stored = {id(file): file.size for files in self.commits.values() for file in files.values()}
        return {
            **self.listed(full=True),
            "sha": commit,
            "lastModified": self._date(commit),
            "disabled": False,
            "cardData": {"license": self.license, "pipeline_tag": self.pipeline_tag},
            "siblings": [_sibling(path, file, blobs) for path, file in sorted(self.commits[commit].items())],
            "spaces": [],
            "usedStorage": sum(stored.values()),
            **self.extra,
        }

    def tree(self, commit: str, under: str, *, recursive: bool, expand: bool) -> list[dict[str, Any]] | None:
        """Entries below a folder, sorted by path; None where there is no such folder."""
        inside = f"{under}/" if under else ""
        files = {path: file for path, file in self.commits[commit].items() if path.startswith(inside)}
        if inside and not files:
            return None
        entries = {}
        for path, file in files.items():
            parts = path.removeprefix(inside).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                folder = inside + "/".join(parts[:depth])
                oid = hashlib.sha1(f"{commit} {folder}".encode()).hexdigest()
                entries[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
            if recursive or len(parts) == 1:
                entries[path] = _tree_file(path, file)
        if expand:
            for path, entry in entries.items():
                entry |= self._expanded(commit, path)
        return [entries[path] for path in sorted(entries)]

    def _expanded(self, commit: str, path: str) -> dict[str, Any]:
        file = self.commits[commit].get(path)
        since = next((each for each, files in self.commits.items() if file and files.get(path) is file), commit)
        scan = {"status": "safe", "avScan": {"virusFound": False, "virusNames": None}, "pickleImportScan": None}
        return {
            "lastCommit": {"id": since, "title": self.titles[since], "date": self._date(since)},
            **({"securityFileStatus": scan} if file else {}),
        }

    def all_refs(self) -> dict[str, Any]:
        def named(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]

        heads, tags = named("heads", self.refs), named("tags", self.tags)
        return {"branches": heads, "tags": tags, "converts": [], "pullRequests": []}


def _instant(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _sibling(path: str, file: HubFile, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    told = {"rfilename": path, "size": file.size, "blobId": file.git_sha1}
    if not file.lfs:
        return told
    return {**told, "lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}}


def _tree_file(path: str, file: HubFile) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "file", "oid": file.git_sha1, "size": file.size, "path": path}
    if not file.lfs:
        return told
    return {**told, "lfs": {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}}
