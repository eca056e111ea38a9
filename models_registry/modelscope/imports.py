"""Imports from ModelScope: what is asked of a worker, and what it has to fetch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
from django.conf import settings

from fleet.sealed import seal, unseal
from models_registry.download.remote import Remote
from models_registry.fetching.work import Item
from models_registry.models import ImportJob, ModelVersion
from models_registry.modelscope.client import ModelScope, ScopeFile

KIND = "modelscope"


class Spec(msgspec.Struct, frozen=True):
    """Files of a repository, each at a revision that has it: (path, size, sha256, revision)."""

    kind: str
    endpoint: str
    repo: str
    files: tuple[tuple[str, int, str, str], ...]


def job_fields(scope: ModelScope, repo: str, files: Sequence[ScopeFile], own_token: str) -> dict[str, object]:
    """Of an ImportJob. `own_token` is sealed; without it that of the installation is used."""
    told = tuple((one.path, one.size, one.sha256, one.revision) for one in files)
    spec = Spec(KIND, scope.endpoint, repo, told)
    return {"remote": msgspec.to_builtins(spec), "sealed_secret": seal(own_token)}


def items(row: ModelVersion, job: ImportJob) -> list[Item]:
    """What a worker has to fetch."""
    spec = msgspec.convert(job.remote, Spec)
    scope = ModelScope(spec.endpoint, unseal(job.sealed_secret) or settings.MODELSCOPE_TOKEN)
    found = []
    for path, size, sha256, revision in spec.files:
        url = scope.url(spec.repo, ScopeFile(path, size, sha256, revision))
        remote = Remote(url, scope.headers, has_hash=bool(sha256), name=path)
        found.append(Item(path, size, remote, sha256 or _place(row, url, size), sha256=sha256))
    return found


def _place(row: ModelVersion, url: str, size: int) -> str:
    return f"ms-{hashlib.sha256(f'{url} {size} {row.pk}'.encode()).hexdigest()}"
