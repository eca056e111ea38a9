"""Content-addressed store of model files.

    blobs/sha256/ab/<sha256>     every file once, read-only
    versions/<digest>/...        checkout of a manifest: hard links to blobs
    manifests/<digest>.json      which blobs a checkout needs
    staging/<random>/            one import under way; a lock is held on it as long as its process lives
    imports/<id>.lock            held by the worker that does an import, as long as its process lives
    uploads/<random>/            files sent by people, waiting for their import
    downloads/<sha256>           files on their way from elsewhere (`download.partial`), kept for a week

Everything appears in place by a rename on one file system: a version is there whole, or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from models_registry.errors import BadSource, NoSpace
from models_registry.file_locks import LOCK_NAME, held, is_abandoned
from models_registry.scan import SourceFile, scan
from wire.errors import BadMessage
from wire.manifest import Manifest, ManifestFile, check_manifest, check_path

log = structlog.get_logger(__name__)

Progress = Callable[[float], None]
"""Called with the share of bytes taken in, 0 to 1."""

CHUNK_BYTES = 1 << 20
SPARE_BYTES = 64 << 20
"""Left free on the file system by an import."""
_UPLOAD_LIFETIME_S = 24 * 3600.0
_FINISHED_LIFETIME_S = 900.0
"""Of the other name of a file that is in the store: an import of the same file may be about to find it done."""
_DOWNLOAD_LIFETIME_S = 7 * 24 * 3600.0


class FileGone(Exception):
    """A file was in the store, and went with the last version that had it."""


@dataclass(frozen=True)
class Staged:
    """Files copied and hashed, not yet in the store."""

    folder: Path  # the checkout as it will be
    manifest: Manifest
    store: Store


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
        with (self.root / LOCK_NAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def import_lock(self, name: str) -> Iterator[bool]:
        """Whether this process may do import `name`: False while another, living process has it."""
        with held(self.root / "imports" / f"{name}.lock") as mine:
            yield mine

    @contextmanager
    def stage(
        self,
        source: Path,
        *,
        link: bool = False,
        protected: Sequence[Path] = (),
        progress: Progress | None = None,
    ) -> Iterator[Staged]:
        """Copy (or hard-link) and hash the files of `source`; they are gone again at the end, unless published.

        With `link`, files on the store's file system are hard-linked: no second copy, but whoever changes the source
        in place afterwards changes the model. Nothing of `protected` (resolved paths) is taken. Raises BadSource,
        NoSpace.
        """
        files = scan(source, protected)
        self.clean_leftovers()
        self._check_space(source, files, link=link)
        with self._staging_folder() as folder:
            taken = self._taken(files, folder / "files", link=link, progress=progress or (lambda share: None))
            yield Staged(folder / "files", check_manifest(Manifest(files=taken)), self)

    @contextmanager
    def _staging_folder(self) -> Iterator[Path]:
        """A new folder, locked before others can see it: an unlocked one they would take for a leftover."""
        name = uuid.uuid4().hex
        made, folder = self.root / f".new-{name}", self._staging / name
        (made / "files").mkdir(parents=True)
        self._staging.mkdir(exist_ok=True)
        try:
            with (made / LOCK_NAME).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                made.rename(folder)
                yield folder
        finally:
            shutil.rmtree(made, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def stage_by(self, take: Callable[[Path], Sequence[ManifestFile]]) -> Iterator[Staged]:
        """What `take` writes to the folder that it is given, hashed and synced; it is gone again unless published."""
        self.clean_leftovers()
        with self._staging_folder() as folder:
            manifest = check_manifest(Manifest(files=tuple(sorted(take(folder / "files")))))
            yield Staged(folder=folder / "files", manifest=manifest, store=self)

    @property
    def downloads(self) -> Path:
        """Where files are fetched to, each under its hash: two imports of one file share it."""
        return self.root / "downloads"

    @contextmanager
    def stage_files(self, files: Sequence[tuple[ManifestFile, Path]]) -> Iterator[Staged]:
        """Files that are hashed already, each from where it lies on the store's file system (a hard link).

        Raises FileGone.
        """
        self.clean_leftovers()
        with self._staging_folder() as folder:
            for file, source in files:
                target = folder / "files" / check_path(file.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, target)
                except FileNotFoundError:  # another import has put it into the store, and its other name is gone
                    self._link_blob(file, target)
            manifest = check_manifest(Manifest(files=tuple(sorted(file for file, _ in files))))
            yield Staged(folder / "files", manifest, self)

    def _link_blob(self, file: ManifestFile, target: Path) -> None:
        try:
            os.link(self.blob_path(file.sha256), target)
        except FileNotFoundError as error:
            raise FileGone(file.path) from error

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
            if not matches(self.blob_path(file.sha256), file) or not _same_file(checkout / file.path, file, self)
        ]

    def delete_unreferenced(self, digests_in_use: Iterable[str], blobs_in_use: Iterable[str] = ()) -> int:
        """Remove versions not in use, and blobs that no version needs. Call it with the lock held; bytes freed.

        `blobs_in_use` stay also when the manifest that needs them was lost.
        """
        used = set(digests_in_use)
        freed_bytes = 0
        for manifest_path in self._manifests.glob("*.json"):
            if manifest_path.stem not in used:
                manifest_path.unlink(missing_ok=True)
        for checkout in (self.root / "versions").glob("*"):
            if checkout.name not in used:
                self._remove_checkout(checkout)
        needed = {file.sha256 for digest in used for file in self._manifest_files(digest)} | set(blobs_in_use)
        for blob in (self.root / "blobs" / "sha256").glob("*/*"):
            if blob.name not in needed:
                freed_bytes += blob.stat().st_size
                blob.unlink()
        log.info("store.cleaned", freed_bytes=freed_bytes, versions=len(used))
        return freed_bytes

    def _remove_checkout(self, checkout: Path) -> None:
        """It goes whole, as it came: one that is half there would be taken for the version when that comes again."""
        self._staging.mkdir(exist_ok=True)
        gone = self._staging / uuid.uuid4().hex
        checkout.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def clean_leftovers(self) -> None:
        """Remove what interrupted imports and forgotten uploads left behind."""
        for folder in self._staging.glob("*"):
            if is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
                log.info("store.leftover_removed", folder=folder.name)
        for folder in (*self._uploads.glob("*"), *self.root.glob(".upload-*"), *self.root.glob(".new-*")):
            with suppress(FileNotFoundError):  # another process cleans as well
                if time.time() - folder.stat().st_mtime > _UPLOAD_LIFETIME_S:
                    shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        for file in self.downloads.glob("*"):
            with suppress(FileNotFoundError):
                age_s = time.time() - file.stat().st_ctime
                is_stored = file.stat().st_nlink > 1
                if age_s > (_FINISHED_LIFETIME_S if is_stored else _DOWNLOAD_LIFETIME_S):
                    if not is_stored and self._imports_run():
                        return  # it may be of one of them, and only seem old to a clock that has jumped
                    file.unlink()
                    file.with_name(file.name + ".ok").unlink(missing_ok=True)

    def _imports_run(self) -> bool:
        """Whether any worker holds an import."""
        for path in (self.root / "imports").glob("*.lock"):
            with suppress(FileNotFoundError), path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
        return False

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

    def _taken(
        self, files: tuple[SourceFile, ...], checkout: Path, *, link: bool, progress: Progress
    ) -> tuple[ManifestFile, ...]:
        try:
            return self._take_in(files, checkout, link=link, progress=progress)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(f"The disk of {self.root} became full while the files were copied.") from error
            raise BadSource(f"The files could not be read to their end: {error}.") from error

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


def matches(path: Path, file: ManifestFile) -> bool:
    """Whether the file at `path` has the bytes that the manifest says; reads all of them."""
    try:
        if path.stat().st_size != file.size_bytes:
            return False
        with path.open("rb") as reader:
            return hashlib.file_digest(reader, "sha256").hexdigest() == file.sha256
    except FileNotFoundError:
        return False


def _same_file(path: Path, file: ManifestFile, store: Store) -> bool:
    try:
        return path.samefile(store.blob_path(file.sha256)) or matches(path, file)
    except FileNotFoundError:
        return False


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
