"""Imports from a Hub: what is asked of a worker, and how it does it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog
from django.conf import settings
from django.utils import timezone

from fleet.sealed import unseal
from models_registry.download.downloader import running
from models_registry.download.lanes import Control
from models_registry.download.pace import Limit
from models_registry.download.partial import Done
from models_registry.download.remote import Remote
from models_registry.download.transfer import Progress, Wanted
from models_registry.errors import BadSource, ImportCancelled, RegistryError
from models_registry.hub.choose import Choice, chosen
from models_registry.hub.client import Hub, HubFile, HubModel
from models_registry.locations.copies import known_bad
from models_registry.locations.mend import drop_other_name
from models_registry.locations.places import location_of
from models_registry.models import HubToken, ImportJob, ModelVersion
from models_registry.store import Store
from models_registry.versions import store_of
from wire.manifest import ManifestFile

log = structlog.get_logger(__name__)

_LOOK_S = 0.5
_FILES_TOLD = 20


class Spec(msgspec.Struct, frozen=True):
    """What to fetch: files of a repository at one commit."""

    endpoint: str
    repo: str
    commit: str
    files: tuple[tuple[str, int, str, str], ...]
    """(path, size, sha256, git's sha1)"""
    license: str = ""


class Detail(msgspec.Struct, frozen=True):
    """How far it is. `files` are those under way: (path, bytes there, bytes in all)."""

    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: float = 0.0
    eta_s: float | None = None
    files: tuple[tuple[str, int, int], ...] = ()


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
    return Spec(settings.HUB_ENDPOINT, model.repo, model.commit, files, model.license)


def fetch(row: ModelVersion, job: ImportJob) -> list[tuple[ManifestFile, Path]]:
    """Every file of the job, whole and verified, with where it lies. Raises RegistryError, and the database's errors.

    The rows are written and read in this thread, the bytes come in another one: neither waits for the other.
    """
    spec = msgspec.convert(job.hub, Spec)
    hub = Hub(spec.endpoint, settings.HUB_TOKEN if job.token is None else unseal(job.token.sealed_token))
    files = [HubFile(path, size, sha256, git_sha1) for path, size, sha256, git_sha1 in spec.files]
    store_ = store_of(job)
    bad = known_bad(location_of(store_))
    for sha256 in bad:
        drop_other_name(store_, sha256)
    missing = [file for file in files if file.sha256 in {"", *bad} or not store_.blob_path(file.sha256).exists()]
    wanted = [
        Wanted(
            path=_place(store_, file),
            size=file.size,
            remote=Remote(hub.url(spec.repo, spec.commit, file.path), hub.headers, has_hash=True, name=file.path),
            sha256=file.sha256,
            git_sha1=file.git_sha1,
        )
        for file in missing
    ]
    have = sum(file.size for file in files) - sum(file.size for file in missing)
    done = dict(zip(missing, _fetch(row, job, wanted, have), strict=True))
    return [
        (
            ManifestFile(
                path=file.path,
                size_bytes=file.size,
                sha256=done[file].sha256 if file in done else file.sha256,
            ),
            _place(store_, file) if file in done else store_.blob_path(file.sha256),
        )
        for file in files
    ]


def _place(store: Store, file: HubFile) -> Path:
    return store.downloads / (file.sha256 or f"git-{file.git_sha1}-{file.size}")


def _fetch(row: ModelVersion, job: ImportJob, wanted: list[Wanted], have: int) -> list[Done]:
    control = Control(Limit(job.limit_bytes_per_second), paused=job.paused, cancelled=job.cancelled)
    work = _Work(wanted, control)
    work.start()
    try:
        while not work.wait(_LOOK_S):
            _look(row, job, work.told, have, control)
    except BaseException:
        control.cancelled = True
        work.wait(None)
        raise
    if isinstance(work.error, ImportCancelled) and not _is_wanted(row):
        raise RegistryError(f"The import of {row} was ended meanwhile.")
    if work.error is not None:
        raise work.error
    _look(row, job, work.told, have, control)
    return work.done


class _Work(threading.Thread):
    """The downloader in a loop of its own."""

    def __init__(self, wanted: list[Wanted], control: Control) -> None:
        super().__init__(name="download", daemon=True)
        self.told = Progress(0, sum(one.size for one in wanted), 0.0, ())
        self.done: list[Done] = []
        self.error: BaseException | None = None
        self._wanted = wanted
        self._control = control
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            self.done = asyncio.run(self._fetch())
        except BaseException as error:
            self.error = error
        finally:
            self._ended.set()

    def wait(self, seconds: float | None) -> bool:
        """Whether it has ended."""
        return self._ended.wait(seconds)

    async def _fetch(self) -> list[Done]:
        async with running(settings.HUB_CONNECTIONS) as downloader:
            return await downloader.fetch(self._wanted, control=self._control, progress=self._note)

    def _note(self, told: Progress) -> None:
        self.told = told


def _look(row: ModelVersion, job: ImportJob, told: Progress, have: int, control: Control) -> None:
    """Tell how far it is, and do what people have said meanwhile."""
    total, done = told.total_bytes + have, told.done_bytes + have
    files = [one for one in told.files if 0 < one[1] < one[2]][:_FILES_TOLD]
    detail = Detail(done, total, round(told.bytes_per_second, 1), told.eta_s, tuple(files))
    now = timezone.now()
    ImportJob.objects.filter(pk=job.pk).update(detail=msgspec.to_builtins(detail), touched_at=now)
    ModelVersion.objects.filter(pk=row.pk).update(progress=done / total if total else 1.0)
    said = ImportJob.objects.filter(pk=job.pk).values_list("paused", "cancelled", "limit_bytes_per_second").first()
    if said is None:  # the row was deleted, or called failed
        control.cancelled = True
        return
    control.paused, control.cancelled, control.limit.bytes_per_second = said


def _is_wanted(row: ModelVersion) -> bool:
    return ImportJob.objects.filter(pk=row.pk).exists()
