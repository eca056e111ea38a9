"""The verb of imports from URLs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from models_registry.download.guard import is_allowed
from models_registry.download.remote import forbidden
from models_registry.errors import BadSource
from models_registry.location_models import StorageLocation
from models_registry.locations.room import choose
from models_registry.models import ImportJob, ModelVersion
from models_registry.services import begin
from models_registry.sources import check_name
from models_registry.urls.imports import job_fields
from models_registry.urls.parse import UrlFile, checked_headers, parse


def start_url_import(
    name: str,
    urls: str | Sequence[str | Mapping[str, Any]],
    *,
    version: str | None = None,
    headers: Mapping[str, str] | None = None,
    bearer_token: str = "",
    limit_bytes_per_second: int | None = None,
    priority: int = 0,
    location: StorageLocation | None = None,
    by: str = "",
    now: dt.datetime,
) -> ModelVersion:
    """Fetch files from http(s) URLs: the row is IMPORTING now, and READY or FAILED later.

    `urls` as `urls.parse` reads them. `headers` and `bearer_token` are sealed, and sent to the host of the URLs only;
    with them all URLs must be of one host. Raises BadSource, SourceRefused, InvalidName, VersionTaken,
    LocationReadOnly, LocationUnreachable.
    """
    check_name(name, version)
    files = parse(urls)
    sent = checked_headers({**(headers or {}), **({"Authorization": f"Bearer {bearer_token}"} if bearer_token else {})})
    if sent and len({file.origin for file in files}) > 1:
        raise BadSource(
            "Headers or a token are given, and the URLs are of several hosts: each would see them.",
            remedy="Import the files of each host by themselves, or leave the headers out.",
        )
    for file in files:
        check_host(file.url, file.path)
    job = ImportJob(
        path=_source(files),  # a release that knows no URLs finds no such file, and says so
        limit_bytes_per_second=limit_bytes_per_second,
        priority=priority,
        location=choose(location),  # how much comes is not known yet
        queued_at=now,
        **job_fields(files, sent),
    )
    return begin(name, version, job, source=_source(files), imported_by=by)


def check_host(url: str, name: str) -> None:
    """Refuse at once an address that would be refused later. Names are looked up when they are connected to."""
    host = urlsplit(url).hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return
    if not is_allowed(host, loopback=settings.FETCH_FROM_LOOPBACK):
        raise forbidden(name, url)


def _source(files: Sequence[UrlFile]) -> str:
    return files[0].shown if len(files) == 1 else f"{files[0].shown} and {len(files) - 1} more"
