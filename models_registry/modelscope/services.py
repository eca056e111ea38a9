"""The verb of imports from ModelScope."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from django.conf import settings

from models_registry.errors import BadSource
from models_registry.hub.choose import chosen
from models_registry.location_models import StorageLocation
from models_registry.locations import room
from models_registry.models import ImportJob, ModelVersion
from models_registry.modelscope.client import DEFAULT_REVISION, ModelScope
from models_registry.modelscope.imports import job_fields
from models_registry.services import begin
from models_registry.sources import check_name
from models_registry.urls.parse import check_places, checked_headers


def start_modelscope_import(
    address: str,
    *,
    patterns: Sequence[str] = (),
    name: str = "",
    version: str | None = None,
    token: str = "",
    limit_bytes_per_second: int | None = None,
    priority: int = 0,
    location: StorageLocation | None = None,
    by: str = "",
    now: dt.datetime,
) -> ModelVersion:
    """Fetch a model from ModelScope: the row is IMPORTING now, and READY or FAILED later.

    `address`: `ms://org/name@revision`, with or without the scheme and the revision. Files are chosen as those of the
    Hub are (`hub.choose`), and fixed here by their hashes. `token`: default MODELSCOPE_API_TOKEN.
    Raises BadSource, SourceGone, SourceRefused, SourceUnreachable, InvalidName, VersionTaken,
    QuotaExceeded, LocationReadOnly, LocationUnreachable.
    """
    repo, _, revision = address.strip().removeprefix("ms://").partition("@")
    name = name or repo
    check_name(name, version)
    scope = ModelScope(settings.MODELSCOPE_ENDPOINT, token.strip() or settings.MODELSCOPE_TOKEN)
    checked_headers(scope.headers)
    files = scope.files(repo, revision or DEFAULT_REVISION)
    taken = set(chosen([file.path for file in files], patterns).paths)
    wanted = [file for file in files if file.path in taken]
    if not wanted:
        said = f"No file of {repo} matches {', '.join(patterns)}." if patterns else f"{repo} holds no model."
        raise BadSource(said, remedy="Look at its files, and give patterns such as *.gguf.")
    check_places(file.path for file in wanted)
    source = f"ms://{repo}@{revision or DEFAULT_REVISION}"
    job = ImportJob(
        path=source,  # a release that knows no ModelScope finds no such file, and says so
        limit_bytes_per_second=limit_bytes_per_second,
        priority=priority,
        location=room.choose(location, sum(file.size for file in wanted)),
        queued_at=now,
        **job_fields(scope, repo, wanted, token.strip()),
    )
    return begin(name, version, job, source=source, imported_by=by)
