"""Content-addressed store of model files.

    blobs/sha256/ab/<sha256>     every file once, read-only
    versions/<digest>/...        checkout of a manifest: hard links to blobs
    manifests/<digest>.json      which blobs a checkout needs
    staging/<random>/            one import under way; a lock is held on it as long as its process lives
    uploads/<random>/            files sent by people, waiting for their import

Everything appears in place by a rename on one file system: a version is there whole, or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from models_registry.errors import BadSource, NoSpace
from wire.errors import BadMessage
from wire.manifest import Manifest, ManifestFile, check_manifest, check_path

log = structlog.get_logger(__name__)

Progress = Callable[[float], None]
"""Called with the share of bytes taken in, 0 to 1."""

CHUNK_BYTES = 1 << 20
SPARE_BYTES = 64 << 20
"""Left free on the file system by an import."""
_UPLOAD_LIFETIME_S = 24 * 3600.0
_MAX_FILES = 20_000
_SKIPPED_FOLDERS = frozenset({".cache", ".git"})  # of download tools, never part of a model
_SKIPPED_FILES = frozenset({".gitattributes", ".gitignore", ".DS_Store"})
_LOCK_NAME = ".lock"


@dataclass(frozen=True)
class SourceFile:
    """A regular file to take in. `path` is relative to the version's folder."""

    path: str
    source: Path
    size_bytes: int


@dataclass(frozen=True)
class Staged:
    """Files copied and hashed, not yet in the store."""

    folder: Path  # the checkout as it will be
    manifest: Manifest


def scan(source: Path) -> tuple[SourceFile, ...]:
    """Regular files of a file or folder, sorted by path.

    Hidden leavings of download tools (`.cache`, `.git`) are left out. A link to a file inside the folder counts as
    that file. Raises BadSource: nothing there, empty, unreadable, a special file, an unsafe name, a link that leaves.
    """
    try:
        root = source.resolve(strict=True)
        if root.is_file():
            return (_checked_file(root, root.parent, source.name),)
        if not root.is_dir():
            raise BadSource(f"{source} is neither a file nor a folder.")
        files = sorted(_walk(root), key=lambda file: file.path)
    except FileNotFoundError as error:
        raise BadSource(f"{error.filename or source} does not exist on the master's machine.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise BadSource(f"{source} cannot be read: {error}.") from error
    if not files:
        raise BadSource(f"The folder {source} holds no files.")
    return tuple(files)


def _walk(root: Path) -> Iterator[SourceFile]:
    def fail(error: OSError) -> None:
        raise error

    count = 0
    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        for name in folders:
            if (Path(folder) / name).is_symlink():
                raise BadSource(
                    f"{Path(folder) / name} is a link to a folder.", remedy="Copy it whole first: cp -rL FOLDER COPY"
                )
        for name in names:
            if name in _SKIPPED_FILES:
                continue
            count += 1
            if count > _MAX_FILES:
                raise BadSource(f"{root} holds more than {_MAX_FILES} files: is this a model's folder?")
            path = Path(folder) / name
            yield _checked_file(path, root, path.relative_to(root).as_posix())


def _checked_file(path: Path, root: Path, relative: str) -> SourceFile:
    try:
        check_path(relative)
        relative.encode()
    except (BadMessage, UnicodeEncodeError) as error:
        raise BadSource(
            f"The file name {relative!r} is not safe.", remedy="Rename the file, then try again."
        ) from error
    real = path.resolve(strict=True)
    if not real.is_relative_to(root):
        raise BadSource(
            f"{relative} is a link that leaves the folder.", remedy="Copy it whole first: cp -rL FOLDER COPY"
        )
    status = real.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadSource(f"{relative} is no regular file.", remedy="Remove it from the folder, then try again.")
    return SourceFile(path=relative, source=real, size_bytes=status.st_size)


class Store:
    """The store below one folder. Safe to use from several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._staging = self.root / "staging"
        self._uploads = self.root / "uploads"
        self._manifests = self.root / "manifests"

    def blob_path(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def version_path(self, digest: str) -> Path:
        """Folder with a version's files under their own names."""
        return self.root / "versions" / digest

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while blobs or versions appear or go, and the rows that name them change. Take it before a
        transaction, never inside one."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / _LOCK_NAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def stage(self, source: Path, *, link: bool = False, progress: Progress | None = None) -> Iterator[Staged]:
        """Copy (or hard-link) and hash the files of `source`; they are gone again at the end, unless published.

        With `link`, files on the store's file system are hard-linked: no second copy, but whoever changes the source
        in place afterwards changes the model. Raises BadSource, NoSpace.
        """
        files = scan(source)
        self.clean_leftovers()
        self._check_space(source, files, link=link)
        folder = self._staging / uuid.uuid4().hex
        checkout = folder / "files"
        checkout.mkdir(parents=True)
        try:
            with (folder / _LOCK_NAME).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                taken = self._take_in(files, checkout, link=link, progress=progress or (lambda share: None))
                yield Staged(folder=checkout, manifest=check_manifest(Manifest(files=taken)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Staged) -> None:
        """Put a staged version in its place. Call it with the lock held; a version that is there already stays."""
        digest = staged.manifest.digest
        for file in staged.manifest.files:
            mine, blob = staged.folder / file.path, self.blob_path(file.sha256)
            blob.parent.mkdir(parents=True, exist_ok=True)
            if blob.exists() and blob.stat().st_size == file.size_bytes:
                mine.unlink()
                os.link(blob, mine)
            else:
                blob.unlink(missing_ok=True)
                os.link(mine, blob)
        self._manifests.mkdir(exist_ok=True)
        part = staged.folder.parent / "manifest.json"
        part.write_bytes(msgspec.json.encode(staged.manifest))
        part.replace(self._manifests / f"{digest}.json")
        place = self.version_path(digest)
        place.parent.mkdir(exist_ok=True)
        if not place.exists():
            staged.folder.rename(place)

    def verify(self, manifest: Manifest) -> list[str]:
        """Paths whose blob or checkout is missing or differs from the manifest; reads every byte."""
        checkout = self.version_path(manifest.digest)
        return [
            file.path
            for file in manifest.files
            if not _matches(self.blob_path(file.sha256), file) or not _same_file(checkout / file.path, file, self)
        ]

    def delete_unreferenced(self, digests_in_use: Iterable[str]) -> int:
        """Remove versions not in use, and blobs that no version needs. Call it with the lock held; bytes freed."""
        used = set(digests_in_use)
        freed_bytes = 0
        for manifest_path in self._manifests.glob("*.json"):
            if manifest_path.stem not in used:
                shutil.rmtree(self.version_path(manifest_path.stem), ignore_errors=True)
                manifest_path.unlink(missing_ok=True)
        for checkout in (self.root / "versions").glob("*"):
            if checkout.name not in used:
                shutil.rmtree(checkout, ignore_errors=True)
        needed = {file.sha256 for digest in used for file in self._manifest_files(digest)}
        for blob in (self.root / "blobs" / "sha256").glob("*/*"):
            if blob.name not in needed:
                freed_bytes += blob.stat().st_size
                blob.unlink()
        log.info("store.cleaned", freed_bytes=freed_bytes, versions=len(used))
        return freed_bytes

    def clean_leftovers(self) -> None:
        """Remove what interrupted imports and forgotten uploads left behind."""
        for folder in self._staging.glob("*"):
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
                log.info("store.leftover_removed", folder=folder.name)
        for folder in self._uploads.glob("*"):
            with suppress(FileNotFoundError):  # another process cleans as well
                if time.time() - folder.stat().st_mtime > _UPLOAD_LIFETIME_S:
                    shutil.rmtree(folder) if folder.is_dir() else folder.unlink()

    def uploads_folder(self) -> Path:
        """Where uploads are written to as they come: on the store's file system, so that they never move again."""
        self._uploads.mkdir(parents=True, exist_ok=True)
        return self._uploads

    def keep_upload(self, temporary: Path, name: str) -> Path:
        """Move an uploaded file to a folder of its own, under `name`. Raises BadSource for an unsafe name."""
        try:
            check_path(name)
        except BadMessage as error:
            raise BadSource(f"The file name {name!r} is not safe.") from error
        if "/" in name:
            raise BadSource(f"The file name {name!r} is not safe.")
        folder = self.uploads_folder() / uuid.uuid4().hex
        folder.mkdir()
        shutil.move(temporary, folder / name)
        (folder / name).chmod(0o444)
        return folder / name

    def drop_upload(self, path: Path) -> None:
        """Remove a kept upload with its folder; any other path is left alone."""
        if path.parent.parent == self._uploads:
            shutil.rmtree(path.parent, ignore_errors=True)

    def _take_in(
        self, files: tuple[SourceFile, ...], checkout: Path, *, link: bool, progress: Progress
    ) -> tuple[ManifestFile, ...]:
        total_bytes = sum(file.size_bytes for file in files) or 1
        done_bytes = 0
        taken = []
        progress(0.0)
        for file in files:
            target = checkout / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            linked = link and _try_link(file.source, target)
            digest = hashlib.sha256()
            size_bytes = 0
            for chunk in _copied_chunks(file.source, None if linked else target):
                digest.update(chunk)
                size_bytes += len(chunk)
                done_bytes += len(chunk)
                progress(min(1.0, done_bytes / total_bytes))
                if size_bytes > file.size_bytes:
                    break  # it grows: it could go on for ever
            if size_bytes != file.size_bytes:
                raise BadSource(f"{file.path} changed while it was read.", remedy="Import it when it is complete.")
            taken.append(ManifestFile(path=file.path, size_bytes=size_bytes, sha256=digest.hexdigest()))
        return tuple(sorted(taken))

    def _check_space(self, source: Path, files: tuple[SourceFile, ...], *, link: bool) -> None:
        self._staging.mkdir(parents=True, exist_ok=True)
        here = self._staging.stat().st_dev
        needed_bytes = sum(f.size_bytes for f in files if not (link and f.source.stat().st_dev == here))
        free_bytes = shutil.disk_usage(self._staging).free
        if needed_bytes and needed_bytes + SPARE_BYTES > free_bytes:
            raise NoSpace(
                f"{source} needs {_gigabytes(needed_bytes)} (and {_gigabytes(SPARE_BYTES)} to spare),"
                f" but only {_gigabytes(free_bytes)} are free in {self.root}."
            )

    def _manifest_files(self, digest: str) -> tuple[ManifestFile, ...]:
        try:
            content = (self._manifests / f"{digest}.json").read_bytes()
        except FileNotFoundError:
            return ()
        return msgspec.json.decode(content, type=Manifest).files


def _copied_chunks(source: Path, target: Path | None) -> Iterator[bytes]:
    """Chunks of a file as they are written to `target` (None: only read). On disk, and read-only, at the end."""
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb", buffering=0) as reader:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise BadSource(f"{source} is no regular file any more.")
        if target is None:
            while chunk := reader.read(CHUNK_BYTES):
                yield chunk
            return
        with target.open("xb", buffering=0) as writer:
            while chunk := reader.read(CHUNK_BYTES):
                view = memoryview(chunk)
                while view:
                    view = view[writer.write(view) :]
                yield chunk
            os.fsync(writer.fileno())
        target.chmod(0o444)


def _try_link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links: it is copied
        return False
    return True


def _is_abandoned(folder: Path) -> bool:
    """Whether the process that made a staging folder is gone: its lock ended with it."""
    try:
        with (folder / _LOCK_NAME).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:  # just being made, or its maker died at that very moment
        with suppress(FileNotFoundError):
            return time.time() - folder.stat().st_mtime > 60
        return False


def _matches(path: Path, file: ManifestFile) -> bool:
    try:
        if path.stat().st_size != file.size_bytes:
            return False
        with path.open("rb") as reader:
            return hashlib.file_digest(reader, "sha256").hexdigest() == file.sha256
    except FileNotFoundError:
        return False


def _same_file(path: Path, file: ManifestFile, store: Store) -> bool:
    try:
        return path.samefile(store.blob_path(file.sha256)) or _matches(path, file)
    except FileNotFoundError:
        return False


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
