"""The verb of imports from a bucket."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from fnmatch import fnmatchcase

from django.conf import settings

from models_registry.errors import BadSource
from models_registry.location_models import StorageLocation
from models_registry.locations.room import choose
from models_registry.models import ImportJob, ModelVersion
from models_registry.s3.address import Bucket, bucket_of
from models_registry.s3.client import S3Object, listed
from models_registry.s3.imports import job_fields
from models_registry.s3.sign import Credentials
from models_registry.services import begin
from models_registry.sources import check_name
from models_registry.urls.parse import check_places
from models_registry.urls.services import check_host


def start_s3_import(
    address: str,
    *,
    name: str = "",
    version: str | None = None,
    endpoint: str = "",
    region: str = "",
    access_key: str = "",
    secret_key: str = "",
    session_token: str = "",
    patterns: Sequence[str] = (),
    limit_bytes_per_second: int | None = None,
    priority: int = 0,
    location: StorageLocation | None = None,
    by: str = "",
    now: dt.datetime,
) -> ModelVersion:
    """Fetch what lies under `s3://bucket/prefix`: the row is IMPORTING now, and READY or FAILED later.

    Which objects there are, and their ETags, is fixed here. Without keys the bucket is asked as nobody. `patterns`:
    of the places below the prefix; default: all. `name`: by default the last part of the prefix.
    Raises BadSource, SourceGone, SourceRefused, SourceUnreachable, InvalidName, VersionTaken, QuotaExceeded,
    LocationReadOnly, LocationUnreachable.
    """
    bucket = bucket_of(address, endpoint, region)
    name = name or bucket.prefix.strip("/").rpartition("/")[2] or bucket.name
    check_name(name, version)
    check_host(bucket.endpoint, str(bucket))
    credentials = _credentials(access_key, secret_key, session_token)
    found = listed(bucket, credentials, loopback=settings.FETCH_FROM_LOOPBACK)
    objects = [(one, _place(bucket, one)) for one in found]
    if patterns:
        objects = [(one, path) for one, path in objects if any(fnmatchcase(path, pattern) for pattern in patterns)]
    if not objects:
        raise BadSource(f"No object of {bucket} matches {', '.join(patterns)}.", remedy="Give others, or none.")
    check_places(path for _, path in objects)
    job = ImportJob(
        path=str(bucket),  # a release that knows no buckets finds no such file, and says so
        limit_bytes_per_second=limit_bytes_per_second,
        priority=priority,
        location=choose(location, sum(one.size for one, _ in objects)),
        queued_at=now,
        **job_fields(bucket, credentials, objects),
    )
    return begin(name, version, job, source=str(bucket), imported_by=by)


def _place(bucket: Bucket, one: S3Object) -> str:
    if one.key == bucket.prefix:
        return one.key.rpartition("/")[2]
    return one.key.removeprefix(bucket.prefix).removeprefix("/")


def _credentials(access_key: str, secret_key: str, session_token: str) -> Credentials | None:
    given = [one.strip() for one in (access_key, secret_key, session_token)]
    if not any(given):
        return None
    if not given[0] or not given[1]:
        raise BadSource("A key has two parts.", remedy="Give the access key and the secret, or none of them.")
    if not all(one.isascii() and one.isprintable() and len(one) <= 4000 for one in given):
        raise BadSource("This is no key.", remedy="Give the access key and the secret as their service shows them.")
    return Credentials(*given)
