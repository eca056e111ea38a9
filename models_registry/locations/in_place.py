"""Versions that stay where they are: folders on shared storage, hashed and described, and never written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import structlog
from django.db import transaction
from django.utils import timezone

from models_registry import aliases
from models_registry.errors import BadSource, RegistryError
from models_registry.inspect import inspect_version
from models_registry.location_models import CopyState, LocationKind, StorageLocation, VersionCopy
from models_registry.locations.find import is_as_hashed
from models_registry.locations.places import reach
from models_registry.locations.scrub import note_file
from models_registry.models import ImportJob, ModelVersion
from models_registry.scan import SourceFile, scan
from models_registry.sources import checked_source, own_paths
from models_registry.store import Progress
from models_registry.versions import check_importing, describe
from wire.manifest import Manifest, ManifestFile, check_manifest

log = structlog.get_logger(__name__)

_CHUNK_BYTES = 1 << 20


def check(location: StorageLocation | None, path: Path) -> Path:
    """`path`, resolved, when it may be registered in place. Raises BadSource, LocationUnreachable."""
    if location is None or location.kind != LocationKind.SHARED:
        raise BadSource(
            "A folder is registered in place on shared storage only.",
            remedy="Name a location of the kind `shared` that has the folder, or import it, which copies it.",
        )
    reach(location)
    real = checked_source(path).resolve()
    if real == location.root or not real.is_relative_to(location.root):
        raise BadSource(
            f"{path} is not a folder within {location.root}.",
            remedy=f"Give a folder, or a file, below {location.root}.",
        )
    return real


def take_in(row: ModelVersion, job: ImportJob, progress: Progress) -> None:
    """Hash every file where it is, on from what an earlier try has hashed, and make the row READY.

    Raises BadSource, DamagedModel, VersionTaken, LocationUnreachable, RegistryError.
    """
    location = job.location
    real = check(location, Path(job.path))
    files = scan(real, own_paths())
    folder = real if real.is_dir() else real.parent
    fields = {"in_place": True, "folder": folder.relative_to(location.root).as_posix(), "state": CopyState.PARTIAL}
    copy, _ = VersionCopy.objects.get_or_create(version=row, location=location, defaults=fields)
    try:
        manifest = check_manifest(Manifest(files=_hashed(copy, files, progress)))
        facts = inspect_version(folder, manifest)
        with transaction.atomic():
            aliases.lock_model(row.model_id)
            check_importing(row, manifest)
            describe(row, manifest, facts)
            row.save()
            VersionCopy.objects.filter(pk=copy.pk).update(state=CopyState.WHOLE, verified_at=timezone.now())
            aliases.settle_latest(row.model, by=row.imported_by, now=timezone.now())
    except RegistryError:
        copy.delete()
        raise


def _hashed(copy: VersionCopy, files: tuple[SourceFile, ...], progress: Progress) -> tuple[ManifestFile, ...]:
    known = {one.path: one for one in copy.files.all()}
    total_bytes = sum(file.size_bytes for file in files) or 1
    done_bytes = 0

    def note(more_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += more_bytes
        progress(min(1.0, done_bytes / total_bytes))

    taken = []
    for file in files:
        noted = known.pop(file.path, None)
        if noted is not None and is_as_hashed(file.source, noted):
            note(noted.size_bytes)
            taken.append(ManifestFile(path=file.path, size_bytes=noted.size_bytes, sha256=noted.sha256))
            continue
        found, status = _hash(file, note)
        note_file(copy, found, status)
        taken.append(found)
    copy.files.filter(path__in=known).delete()
    return tuple(sorted(taken))


def _hash(file: SourceFile, note: Callable[[int], None]) -> tuple[ManifestFile, os.stat_result]:
    digest = hashlib.sha256()
    try:
        with file.source.open("rb", buffering=0) as reader:
            before = os.fstat(reader.fileno())
            while chunk := reader.read(_CHUNK_BYTES):
                digest.update(chunk)
                note(len(chunk))
                if reader.tell() > before.st_size:
                    break  # it grows: there may be no end to it
        after = file.source.stat()
    except OSError as error:
        raise BadSource(f"{file.path} could not be read to its end: {error}.") from error
    if any(getattr(before, name) != getattr(after, name) for name in ("st_size", "st_mtime_ns", "st_ino")):
        raise BadSource(f"{file.path} changed while it was read.", remedy="Register it when it is complete.")
    return ManifestFile(path=file.path, size_bytes=before.st_size, sha256=digest.hexdigest()), after
