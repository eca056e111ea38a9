"""Verbs of imports from a Hub: start, pause, go on, slow down, cancel; and of the tokens they use."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import msgspec
import structlog
from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from fleet.sealed import seal
from models_registry.errors import ImportCancelled, InvalidToken, NotReady, TokenNameTaken
from models_registry.hub.choose import Choice
from models_registry.hub.imports import look_up, spec_of
from models_registry.location_models import StorageLocation
from models_registry.locations.room import choose
from models_registry.models import HubToken, ImportJob, ModelVersion, VersionState
from models_registry.services import begin, fail_import
from models_registry.sources import check_name
from models_registry.versions import import_lock

log = structlog.get_logger(__name__)


def start_hub_import(
    repo: str,
    *,
    revision: str = "main",
    patterns: Sequence[str] = (),
    paths: Sequence[str] = (),
    name: str = "",
    version: str | None = None,
    token: HubToken | None = None,
    limit_bytes_per_second: int | None = None,
    location: StorageLocation | None = None,
    now: dt.datetime,
) -> ModelVersion:
    """Fetch a model from the Hub: the row is IMPORTING now, and READY or FAILED later.

    The commit is fixed here; what the branch becomes meanwhile does not matter. `paths` are the files to take, else
    those that match `patterns`, else the sensible ones. `name`: by default the repository's.
    Raises BadSource, SourceGone, SourceRefused, SourceUnreachable, InvalidName, VersionTaken, QuotaExceeded,
    LocationReadOnly, LocationUnreachable.
    """
    name = name or repo
    check_name(name, version)
    model, choice = look_up(repo, revision, patterns, token)
    if paths:
        choice = Choice(tuple(paths), "those that were chosen")
    spec = spec_of(model, choice, patterns)
    job = ImportJob(
        hub=msgspec.to_builtins(spec),
        token=token,
        limit_bytes_per_second=limit_bytes_per_second,
        location=choose(location, sum(size for _, size, *_ in spec.files)),
        queued_at=now,
    )
    return begin(name, version, job, source=f"hf://{model.repo}@{model.commit}")


def pause_import(row: ModelVersion, *, paused: bool = True) -> None:
    """Stop fetching within a second, with all that is there kept; or go on. Raises NotReady."""
    if not _jobs(row).update(paused=paused):
        raise _not_fetched(row)
    log.info("model.import_paused" if paused else "model.import_resumed", model=str(row))


def limit_import(row: ModelVersion, bytes_per_second: int | None) -> None:
    """Not faster than this (None: as fast as it goes). Raises NotReady."""
    if not _jobs(row).update(limit_bytes_per_second=bytes_per_second or None):
        raise _not_fetched(row)


def cancel_import(row: ModelVersion) -> None:
    """End an import; what was fetched stays for a week, for the next one. Raises NotReady."""
    if not _jobs(row).update(cancelled=True, paused=False):
        raise _not_fetched(row)
    for job in ImportJob.objects.select_related("location").filter(pk=row.pk):
        with import_lock(job) as mine:  # else its worker sees it within a second
            if mine:
                fail_import(row, ImportCancelled("The import was cancelled."))
    log.info("model.import_cancelled", model=str(row))


def save_token(name: str, token: str) -> HubToken:
    """A new one. Raises InvalidToken, TokenNameTaken."""
    name, token = name.strip(), token.strip()
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise InvalidToken("The name must have 1 to 80 printable characters.")
    if not 8 <= len(token) <= 400 or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidToken("This is no token.")
    try:
        with transaction.atomic():
            row = HubToken.objects.create(name=name, sealed_token=seal(token))
    except IntegrityError as error:
        raise TokenNameTaken(f"There is a token {name!r} already.") from error
    log.info("hub_token.saved", name=name)
    return row


def delete_token(row: HubToken) -> None:
    """Imports under way that use it go on as nobody."""
    name = row.name
    row.delete()
    log.info("hub_token.deleted", name=name)


def _jobs(row: ModelVersion) -> QuerySet[ImportJob]:
    return ImportJob.objects.filter(pk=row.pk, version__state=VersionState.IMPORTING, hub__isnull=False)


def _not_fetched(row: ModelVersion) -> NotReady:
    return NotReady(f"{row} is not being fetched from a Hub.", remedy="Look at its state: it may have ended meanwhile.")
