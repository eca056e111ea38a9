"""Imports from a Hub: what is asked of a worker, and how it does it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from django.conf import settings

from fleet.sealed import unseal
from models_registry.download.remote import Remote
from models_registry.errors import BadSource
from models_registry.fetching.work import Item
from models_registry.hub.choose import Choice, alternatives, chosen
from models_registry.hub.client import Hub, HubModel
from models_registry.models import HubToken, ImportJob


class Spec(msgspec.Struct, frozen=True):
    """What to fetch: files of a repository at one commit."""

    endpoint: str
    repo: str
    commit: str
    files: tuple[tuple[str, int, str, str], ...]
    """(path, size, sha256, git's sha1)"""
    license: str = ""
    gated: bool = False


def hub_of(token: HubToken | None = None) -> Hub:
    """The Hub of this installation (`HF_ENDPOINT`), as the owner of this token, or of `HF_TOKEN`, sees it."""
    return Hub(settings.HUB_ENDPOINT, settings.HUB_TOKEN if token is None else unseal(token.sealed_token))


def look_up(repo: str, revision: str, patterns: Sequence[str], token: HubToken | None) -> tuple[HubModel, Choice]:
    """A repository, and what of it would be taken. Raises RegistryError."""
    model = hub_of(token).model(repo, revision)
    choice = chosen([file.path for file in model.files], patterns)
    return model, choice


def spec_of(model: HubModel, choice: Choice, patterns: Sequence[str] = ()) -> Spec:
    """Raises BadSource when there is nothing to take."""
    taken = set(choice.paths)
    files = tuple((one.path, one.size, one.sha256, one.git_sha1) for one in model.files if one.path in taken)
    if not files:
        raise BadSource(
            f"No file of {model.repo} matches {', '.join(patterns)}."
            if patterns
            else f"{model.repo} holds no file that could be taken.",
            remedy="Look at its files, and give patterns such as *.gguf.",
        )
    if not any(path.endswith(".safetensors") for path in taken) and (several := alternatives(taken)):
        raise BadSource(
            f"{' and '.join(several)} are the same model, and a version holds one.",
            remedy="Take one of them; import another as a version of its own.",
        )
    return Spec(settings.HUB_ENDPOINT, model.repo, model.commit, files, model.license, model.gated)


def items(job: ImportJob) -> list[Item]:
    """What a worker has to fetch."""
    spec = msgspec.convert(job.hub, Spec)
    hub = Hub(spec.endpoint, settings.HUB_TOKEN if job.token is None else unseal(job.token.sealed_token))
    return [
        Item(
            path=path,
            size=size,
            remote=Remote(hub.url(spec.repo, spec.commit, path), hub.headers, has_hash=True, name=path),
            place=sha256 or f"git-{git_sha1}-{size}",
            sha256=sha256,
            git_sha1=git_sha1,
        )
        for path, size, sha256, git_sha1 in spec.files
    ]
