"""Verbs of exports: a READY version as a folder, as a tar, or as the bytes of a tar."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import structlog

from models_registry.archive.manifest import FILES, NAME, ArchiveManifest, encode
from models_registry.archive.tar_plan import TarPlan, plan_tar
from models_registry.errors import ExportRefused, NoSpace
from models_registry.locations.find import blob_or_fail
from models_registry.models import ModelVersion
from models_registry.services import manifest_of
from models_registry.sources import own_paths
from models_registry.store import CHUNK_BYTES, SPARE_BYTES
from wire.manifest import ManifestFile

log = structlog.get_logger(__name__)

_FACTS = ("format", "architecture", "parameter_count", "context_tokens", "layers", "hidden_size", "quantization")
Progress = Callable[[float], None]


def archive_manifest(version: ModelVersion) -> ArchiveManifest:
    """Raises NotReady."""
    manifest = manifest_of(version)
    facts = {name: getattr(version, name) for name in _FACTS if getattr(version, name)}
    return ArchiveManifest(
        name=version.model.name,
        version=version.version,
        source=version.source,
        digest=manifest.digest,
        facts=facts,
        files=tuple(sorted(manifest.files)),
    )


def tar_of(version: ModelVersion) -> TarPlan:
    """How the version is as a tar. Raises NotReady, LocationUnreachable."""
    manifest = archive_manifest(version)
    blobs = [blob_or_fail(file.sha256) for file in manifest.files]
    return plan_tar(manifest, blobs, int(version.created_at.timestamp()))


def export_version(version: ModelVersion, target: Path, *, progress: Progress = lambda share: None) -> Path:
    """Write a READY version to `target`: a tar when it is called so, else a folder. It is there whole, or not at all.

    Raises NotReady, ExportRefused, NoSpace, LocationUnreachable.
    """
    target = _checked_target(target)
    manifest = archive_manifest(version)
    _check_space(target.parent, sum(file.size_bytes for file in manifest.files))
    made = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        if target.suffix == ".tar":
            _write_tar(tar_of(version), made, progress)
        else:
            _write_folder(manifest, made, progress)
        made.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"The disk of {target.parent} became full.") from error
        raise ExportRefused(f"{target} could not be written: {error}.") from error
    finally:
        shutil.rmtree(made, ignore_errors=True) if made.is_dir() else made.unlink(missing_ok=True)
    log.info("model.exported", model=str(version), size_bytes=version.size_bytes)
    return target


async def chunks_of(plan: TarPlan) -> AsyncIterator[bytes]:
    """The bytes of a tar, for a response that is sent as it is read."""
    for part in plan.parts:
        if part.before:
            yield part.before
        if part.blob is None or part.file is None:
            continue
        chunks = _checked_chunks(part.blob, part.file)
        while (chunk := await asyncio.to_thread(next, chunks, b"")) != b"":
            yield chunk
        if part.padding:
            yield bytes(part.padding)


def _checked_chunks(blob: Path, file: ManifestFile) -> Iterator[bytes]:
    """Raises ExportRefused at the end when it is not what it should be: whoever has it then has no whole archive."""
    digest, count = hashlib.sha256(), 0
    try:
        with blob.open("rb", buffering=0) as reader:
            while chunk := reader.read(CHUNK_BYTES):
                digest.update(chunk)
                count += len(chunk)
                if count > file.size_bytes:
                    break
                yield chunk
    except FileNotFoundError:
        count = -1
    if count != file.size_bytes or digest.hexdigest() != file.sha256:
        raise ExportRefused(
            f"{file.path} is damaged in the store, or gone from it.",
            remedy="Look with `./stokehold verify_store`, and import this version again.",
        )


def _write_tar(plan: TarPlan, made: Path, progress: Progress) -> None:
    done = 0
    with made.open("xb") as writer:
        for part in plan.parts:
            writer.write(part.before)
            if part.blob is not None and part.file is not None:
                for chunk in _checked_chunks(part.blob, part.file):
                    writer.write(chunk)
                    done += len(chunk)
                    progress(done / plan.size)
            writer.write(bytes(part.padding))
        writer.flush()
        os.fsync(writer.fileno())


def _write_folder(manifest: ArchiveManifest, made: Path, progress: Progress) -> None:
    """Copies, not hard links: who changes an export must not change the store."""
    made.mkdir()
    done, total = 0, sum(file.size_bytes for file in manifest.files) or 1
    for file in manifest.files:
        place = made / FILES / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as writer:
            for chunk in _checked_chunks(blob_or_fail(file.sha256), file):
                writer.write(chunk)
                done += len(chunk)
                progress(done / total)
            writer.flush()
            os.fsync(writer.fileno())
    (made / NAME).write_bytes(encode(manifest))


def _checked_target(target: Path) -> Path:
    """Absolute. Raises ExportRefused."""
    try:
        folder = target.absolute().parent.resolve(strict=True)
        place = folder / target.name
        if not folder.is_dir() or os.path.lexists(place) or not target.name:
            raise ExportRefused(f"{place} is there already, or its folder is none.")
    except (OSError, ValueError, RuntimeError) as error:
        raise ExportRefused(f"{target} cannot be written: {error}.") from error
    if any(place.is_relative_to(own) or own.is_relative_to(place) for own in own_paths()):
        raise ExportRefused(f"{place} is in this installation's own home folder.")
    return place


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise NoSpace(f"The export needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free in {folder}.")
