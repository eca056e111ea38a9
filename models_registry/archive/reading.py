"""Takes an archive in: every file straight to its place in the staging folder, hashed as it is copied."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from models_registry.archive.manifest import FILES, MOST_BYTES, NAME, ArchiveManifest, decode
from models_registry.archive.tar_index import BLOCK, Member, index, is_tar
from models_registry.errors import BadArchive, BadSource, NoSpace
from models_registry.scan import SourceFile, scan
from wire.manifest import ManifestFile

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Archive:
    """An archive whose manifest is sound, and that has the files which that names, by their sizes."""

    path: Path
    manifest: ArchiveManifest
    members: dict[str, Member] = field(default_factory=dict, repr=False)
    """In a tar: by the path of the version's file. Empty: it is a folder."""

    def where(self, path: str) -> tuple[Path, int]:
        """Where a file's bytes begin."""
        if path in self.members:
            return self.path, self.members[path].offset
        return self.path / FILES / path, 0


def archive_at(path: Path) -> Archive | None:
    """What lies there, when it is an archive or looks like one. Raises BadArchive, BadSource."""
    try:
        if path.is_dir():
            return _folder(path) if (path / NAME).is_file() else None
        with _opened(path) as file:
            if not is_tar(file.read(BLOCK)):
                if path.suffix == ".tar":
                    raise BadArchive(f"{path.name} is no tar, or its beginning is damaged.")
                return None
            return _tar(path, file)
    except OSError as error:
        raise BadSource(f"{path} cannot be read: {error}.") from error


def take(
    archive: Archive, target: Path, spare_bytes: int, progress: Callable[[float], None]
) -> tuple[ManifestFile, ...]:
    """Copy the files of an archive to the folder `target`, and check every hash on the way.

    Raises BadArchive, BadSource, NoSpace.
    """
    files = sorted(archive.manifest.files)
    total = sum(file.size_bytes for file in files)
    free = shutil.disk_usage(target).free
    if total + spare_bytes > free:
        raise NoSpace(f"{archive.path.name} holds {total / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free.")
    done = 0

    def note(count: int) -> None:
        nonlocal done
        done += count
        progress(min(1.0, done / (total or 1)))

    for file in files:
        place = target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            _copy(*archive.where(file.path), file, place, note)
        except OSError as error:
            raise BadSource(f"{archive.path.name} could not be read to its end: {error}.") from error
    return tuple(files)


def _copy(source: Path, start: int, file: ManifestFile, place: Path, note: Callable[[int], None]) -> None:
    digest, left = hashlib.sha256(), file.size_bytes
    with _opened(source) as reader, place.open("xb", buffering=0) as writer:
        reader.seek(start)
        while left and (chunk := reader.read(min(_CHUNK_BYTES, left))):
            digest.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[writer.write(view) :]
            left -= len(chunk)
            note(len(chunk))
        os.fsync(writer.fileno())
    if left or digest.hexdigest() != file.sha256:
        got = "it is truncated" if left else f"they have {digest.hexdigest()}"
        raise BadArchive(f"{file.path}: the manifest says that its bytes have the hash {file.sha256}, but {got}.")
    place.chmod(0o444)


def _opened(path: Path) -> BinaryIO:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    file = os.fdopen(handle, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise BadSource(f"{path} is no regular file.")
    return file


def _tar(path: Path, file: BinaryIO) -> Archive:
    found = index(file, os.fstat(file.fileno()).st_size)
    roots = [name.removesuffix(NAME) for name in found if name == NAME or name.endswith(f"/{NAME}")]
    roots = [root for root in roots if root.count("/") <= 1]  # the folder itself may have been packed
    if len(roots) != 1:
        raise BadArchive(f"{path.name} is a tar without {NAME}: it is no export of a model version.")
    member = found.pop(f"{roots[0]}{NAME}")
    if member.size > MOST_BYTES:
        raise BadArchive(f"{NAME} is larger than any manifest.")
    file.seek(member.offset)
    manifest = decode(file.read(member.size))
    prefix = f"{roots[0]}{FILES}"
    for name in found:
        if not name.startswith(prefix):
            raise BadArchive(f"{name!r} in the tar is not named in its manifest.")
    members = {name.removeprefix(prefix): found_member for name, found_member in found.items()}
    _check_same(manifest, {name: one.size for name, one in members.items()})
    return Archive(path, manifest, members)


def _folder(path: Path) -> Archive:
    if (path / NAME).stat().st_size > MOST_BYTES:
        raise BadArchive(f"{NAME} is larger than any manifest.")
    manifest = decode((path / NAME).read_bytes())
    found: tuple[SourceFile, ...] = scan(path / FILES)
    _check_same(manifest, {file.path: file.size_bytes for file in found})
    return Archive(path, manifest)


def _check_same(manifest: ArchiveManifest, found: dict[str, int]) -> None:
    """The same files, of the same sizes."""
    named = {file.path: file.size_bytes for file in manifest.files}
    if missing := named.keys() - found.keys():
        raise BadArchive(f"{min(missing)!r} is named in the manifest, and is not in the archive.")
    if more := found.keys() - named.keys():
        raise BadArchive(f"{min(more)!r} is in the archive, and not named in its manifest.")
    for path, size in found.items():
        if size != named[path]:
            raise BadArchive(f"{path!r} has {size} bytes, and {named[path]} by the manifest.")
