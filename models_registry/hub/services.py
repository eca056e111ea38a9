"""Verbs of imports from a Hub: start one; and of the tokens they use. The others: `fetching.services`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import msgspec
import structlog
from django.db import IntegrityError, transaction

from fleet.sealed import seal
from models_registry.errors import InvalidToken, TokenNameTaken
from models_registry.hub.choose import Choice
from models_registry.hub.client import source_of
from models_registry.hub.imports import look_up, spec_of
from models_registry.location_models import StorageLocation
from models_registry.locations.room import choose
from models_registry.models import HubToken, ImportJob, ModelVersion
from models_registry.services import begin
from models_registry.sources import check_name

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
    priority: int = 0,
    by: str = "",
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
        priority=priority,
        location=choose(location, sum(size for _, size, *_ in spec.files)),
        queued_at=now,
    )
    about = {"imported_by": by, "license": spec.license[:200], "gated": spec.gated, "hub_token": token}
    return begin(name, version, job, source=source_of(model.repo, model.commit), **about)


def save_token(name: str, token: str, project: str = "") -> HubToken:
    """A new one; `project`: id of the one whose people use it, else everybody who may import does.

    Raises InvalidToken, TokenNameTaken.
    """
    name, token = name.strip(), token.strip()
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise InvalidToken("The name must have 1 to 80 printable characters.")
    if not 8 <= len(token) <= 400 or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidToken("This is no token.")
    try:
        with transaction.atomic():
            row = HubToken.objects.create(name=name, project=project, sealed_token=seal(token))
    except IntegrityError as error:
        raise TokenNameTaken(f"There is a token {name!r} already.") from error
    log.info("hub_token.saved", name=name)
    return row


def delete_token(row: HubToken) -> None:
    """Imports under way that use it go on as nobody."""
    name = row.name
    row.delete()
    log.info("hub_token.deleted", name=name)
