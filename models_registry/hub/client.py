"""What a Hub has: models, their files and hashes, by `huggingface_hub`. Bytes are the downloader's to fetch."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from models_registry.errors import BadSource, SourceGone, SourceRefused, SourceUnreachable
from models_registry.scan import MOST_FILES
from wire.errors import BadMessage
from wire.manifest import check_path

DEFAULT_ENDPOINT = "https://huggingface.co"
_SCHEME = "hf://"
_KNOCK_S = 5.0
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")


@dataclass(frozen=True)
class HubFile:
    """`sha256` of large files, `git_sha1` (of git's blob) of the others."""

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""


@dataclass(frozen=True)
class HubModel:
    """A repository at one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    gated: bool = False
    private: bool = False
    license: str = ""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class HubHit:
    """One model found by a search."""

    repo: str
    downloads: int
    likes: int
    gated: bool
    private: bool
    license: str
    task: str


class Hub:
    """One Hub, as somebody with this token (empty: nobody) sees it."""

    def __init__(self, endpoint: str = DEFAULT_ENDPOINT, token: str = "") -> None:
        self.endpoint = endpoint.rstrip("/")
        self.token = token
        self._api = HfApi(endpoint=self.endpoint, token=token or False)

    def search(self, words: str, limit: int = 30) -> list[HubHit]:
        """The most downloaded first. Raises SourceUnreachable."""
        with _told(words, self.token):
            self._knock()
            found = list(self._api.list_models(search=words, limit=limit, sort="downloads", full=True))
        return [
            HubHit(
                repo=model.id,
                downloads=model.downloads or 0,
                likes=model.likes or 0,
                gated=bool(model.gated),
                private=bool(model.private),
                license=_license(model.tags or ()),
                task=model.pipeline_tag or "",
            )
            for model in found
        ]

    def model(self, repo: str, revision: str = "main") -> HubModel:
        """Raises BadSource, SourceGone, SourceRefused, SourceUnreachable."""
        if not _REPO.fullmatch(repo):
            raise BadSource(f"{repo!r} is no repository.", remedy="Give NAMESPACE/NAME as the Hub shows it.")
        with _told(repo, self.token, revision):
            self._knock()
            info = self._api.model_info(repo, revision=revision or "main", files_metadata=True)
        siblings = info.siblings or []
        if len(siblings) > MOST_FILES:
            raise BadSource(f"{repo} has {len(siblings)} files; {MOST_FILES} are the most that are taken.")
        files = []
        for one in siblings:
            try:
                path = check_path(one.rfilename)
            except BadMessage as error:
                raise BadSource(f"{repo} names a file {one.rfilename!r}, which is not safe to write.") from error
            lfs = one.lfs
            files.append(HubFile(path, one.size or 0, lfs.sha256 if lfs else "", "" if lfs else one.blob_id or ""))
        return HubModel(
            repo=info.id,
            commit=info.sha or "",
            files=tuple(files),
            gated=bool(info.gated),
            private=bool(info.private),
            license=_license(info.tags or ()),
        )

    def url(self, repo: str, commit: str, path: str) -> str:
        """Where a file's bytes are asked for."""
        return f"{self.endpoint}/{repo}/resolve/{quote(commit, safe='')}/{quote(path)}"

    def _knock(self) -> None:
        """Raises OSError when nobody answers: the library would try for half a minute, with a person waiting."""
        parts = urlsplit(self.endpoint)
        if parts.hostname and parts.scheme not in getproxies():
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname, port), timeout=_KNOCK_S).close()

    @property
    def headers(self) -> dict[str, str]:
        """For `url`; never for where it redirects."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


@contextmanager
def _told(repo: str, token: str, revision: str = "") -> Iterator[None]:
    """The Hub's errors as ours, each with what to do next."""
    try:
        yield
    except GatedRepoError as error:
        raise SourceRefused(
            f"{repo} is gated: its terms must be accepted first.",
            remedy=(
                f"Open the page of {repo} as the owner of this token, accept the terms (or wait for them), try again."
                if token
                else f"Accept them on the page of {repo} as the owner of a token, then give that token."
            ),
        ) from error
    except RevisionNotFoundError as error:
        raise SourceGone(
            f"{repo} has no revision {revision!r}.", remedy="Give a branch, a tag or a commit that is there."
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceGone(
            f"There is no {repo}, or it is private and this token may not see it.",
            remedy="Look at the name; for a private one give a token that may read it.",
        ) from error
    except HFValidationError as error:
        raise BadSource(f"{repo!r} is no repository: {error}.") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise SourceUnreachable(
            f"The Hub does not answer: {_short(error)}.",
            remedy="Look at the network of the master, and at HF_ENDPOINT when a mirror is used; then try again.",
        ) from error


def _license(tags: Iterable[str]) -> str:
    found = [tag for tag in tags if tag.startswith("license:")]
    return found[0].partition(":")[2] if found else ""


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def source_of(repo: str, commit: str) -> str:
    """How a version keeps where in a Hub it came from."""
    return f"{_SCHEME}{repo}@{commit}"


def origin_of(source: str) -> tuple[str, str] | None:
    """(repository, commit) of what `source_of` made; None: it came from elsewhere."""
    repo, _, commit = source.removeprefix(_SCHEME).rpartition("@")
    return (repo, commit) if source.startswith(_SCHEME) and repo else None
