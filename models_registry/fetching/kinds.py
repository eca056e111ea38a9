"""The sources that files can be fetched from. A new one is a package with `KIND` and `items`, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from models_registry.download import partial
from models_registry.errors import BadSource
from models_registry.fetching import work
from models_registry.hub import imports as hub
from models_registry.models import ImportJob, ModelVersion
from models_registry.modelscope import imports as modelscope
from models_registry.s3 import imports as s3
from models_registry.store import FileGone, Staged, Store
from models_registry.urls import imports as urls
from models_registry.versions import store_of
from wire.errors import Problem
from wire.manifest import ManifestFile


@dataclass(frozen=True)
class _Kind:
    """`given`: a person gives the address; else this installation's settings do."""

    items: Callable[[ModelVersion, ImportJob], list[work.Item]]
    given: bool


_KINDS = {
    urls.KIND: _Kind(urls.items, given=True),
    s3.KIND: _Kind(s3.items, given=True),
    modelscope.KIND: _Kind(modelscope.items, given=False),
}


def give_back(job: ImportJob) -> None:
    """Free the room that is reserved for what an import has not fetched, and will not: it has ended.

    What came of it stays for the next one.
    """
    _with_each_file(job, partial.give_back)


def keep(job: ImportJob) -> None:
    """What of a paused import has come is not old, however long it is paused."""
    _with_each_file(job, partial.keep)


def _with_each_file(job: ImportJob, act: Callable[[Path], None]) -> None:
    """Of an import that is not under way, where each is, or would be, on its way."""
    with suppress(Problem, OSError):  # its disk is away, or its secret cannot be read any more
        store = store_of(job)
        for item in _known_items(job):
            act(store.downloads / item.place)


def _known_items(job: ImportJob) -> list[work.Item]:
    """Of those whose sources were not asked yet nothing is reserved."""
    if job.hub is not None:
        return hub.items(job)
    told = job.remote or {}
    kind = _KINDS.get(str(told.get("kind", "")))
    if kind is None or (told["kind"] == urls.KIND and not told.get("pins")):
        return []
    return kind.items(job.version, job)


@contextmanager
def staged(row: ModelVersion, job: ImportJob, store: Store) -> Iterator[Staged]:
    """Every file of the job, staged in the store. One that was there, and went with its version, is fetched after all.

    Raises as `fetch`.
    """
    with ExitStack() as stack:
        found: Staged | None = None
        while found is None:
            with suppress(FileGone):
                found = stack.enter_context(store.stage_files(fetch(row, job)))
        yield found


def fetch(row: ModelVersion, job: ImportJob) -> list[tuple[ManifestFile, Path]]:
    """Every file of the job, whole and verified, with where it lies.

    Raises Parked, RegistryError, and the database's errors.
    """
    if job.hub is not None:  # the Hub is where the installation says: on this machine too
        return work.fetch(row, job, hub.items(job), loopback=True)
    name = str((job.remote or {}).get("kind", ""))
    kind = _KINDS.get(name)
    if kind is None:
        raise BadSource(f"This release knows no source of the kind {name!r}.", remedy="Start the import again.")
    return work.fetch(row, job, kind.items(row, job), loopback=settings.FETCH_FROM_LOOPBACK or not kind.given)
