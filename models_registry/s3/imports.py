"""Imports from a bucket: what is asked of a worker, and what it has to fetch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from fleet.sealed import seal, unseal
from models_registry.download.remote import Remote
from models_registry.fetching.work import Item
from models_registry.models import ImportJob, ModelVersion
from models_registry.s3.address import Bucket
from models_registry.s3.client import S3Object, signer
from models_registry.s3.sign import Credentials, object_url

KIND = "s3"


class Spec(msgspec.Struct, frozen=True):
    """Objects as they were when the import began: (key, place, size, ETag)."""

    kind: str
    endpoint: str
    region: str
    bucket: str
    objects: tuple[tuple[str, str, int, str], ...]


def job_fields(
    bucket: Bucket, credentials: Credentials | None, objects: Sequence[tuple[S3Object, str]]
) -> dict[str, object]:
    """Of an ImportJob."""
    told = tuple((one.key, path, one.size, one.etag) for one, path in objects)
    spec = Spec(KIND, bucket.endpoint, bucket.region, bucket.name, told)
    secret = seal(msgspec.json.encode(credentials).decode()) if credentials else ""
    return {"remote": msgspec.to_builtins(spec), "sealed_secret": secret}


def items(row: ModelVersion, job: ImportJob) -> list[Item]:
    """What a worker has to fetch."""
    spec = msgspec.convert(job.remote, Spec)
    credentials = msgspec.json.decode(unseal(job.sealed_secret), type=Credentials) if job.sealed_secret else None
    prover = signer(Bucket(spec.endpoint, spec.region, spec.bucket, ""), credentials)
    return [
        Item(
            path,
            size,
            Remote(object_url(spec.endpoint, spec.bucket, key), etag=etag, name=path, signer=prover),
            place=_place(spec, key, size, etag or f"import {row.pk}"),
        )
        for key, path, size, etag in spec.objects
    ]


def _place(spec: Spec, key: str, size: int, etag: str) -> str:
    text = f"{spec.endpoint} {spec.bucket} {key} {size} {etag}"
    return f"s3-{hashlib.sha256(text.encode()).hexdigest()}"
