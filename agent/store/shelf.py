"""The files of a server's cache on disk: blobs, checkouts, and what is known of each checkout.

HOME/blobs/ab/abcd...             whole and verified, mode 0444
HOME/blobs/partial/               on their way (`parts`)
HOME/blobs/verified.json          when blobs were read again and found right (`scrub`)
HOME/blobs/mended.json            when files that engines had open were replaced (`damage`)
HOME/models/<digest>/             a checkout: hard links, there only when it is complete
HOME/models/<digest>.json         its manifest and name (`Label`); the file's time is when it was used last

All of it outlives the agent: one that is installed anew on the same home takes it over.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from agent.errors import FetchFailed
from agent.home import write_whole
from wire.manifest import Manifest, ManifestFile
from wire.pieces import PIECE_BYTES

_HASHED_AT_ONCE = 4 << 20

log = structlog.get_logger(__name__)


class Label(msgspec.Struct, frozen=True):
    """What a checkout is."""

    manifest: Manifest
    model_name: str


class Shelf:
    """Paths below one home, and what is done to them. Nothing here decides."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.partial = root / "blobs" / "partial"
        self.models = root / "models"
        self._labels: dict[Path, tuple[tuple[int, int, int], Label]] = {}  # as read, with (inode, size, time in ns)

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256[:2] / sha256

    def part(self, sha256: str) -> Path:
        return self.partial / f"{sha256}.part"

    def checkout(self, digest: str) -> Path:
        return self.models / digest

    def _label(self, digest: str) -> Path:
        return self.models / f"{digest}.json"

    def times(self, name: str) -> dict[str, float]:
        """Unix times that were kept under a name; empty when they cannot be read."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((self.blobs / f"{name}.json").read_bytes(), type=dict[str, float])
        return {}

    def keep_times(self, name: str, times: Mapping[str, float]) -> None:
        if self.blobs.is_dir():
            write_whole(self.blobs / f"{name}.json", msgspec.json.encode(times))

    def has_blob(self, file: ManifestFile) -> bool:
        try:
            return self.blob(file.sha256).stat().st_size == file.size_bytes
        except OSError:  # not there, or where the disk is damaged
            return False

    def blob_sizes(self) -> dict[str, int]:
        """Of every blob that is here whole."""
        sizes = {}
        for path in self.blobs.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                sizes[path.name] = path.stat().st_size
        return sizes

    def labels(self) -> list[tuple[Label, float]]:
        """(what, when used last in Unix time) of every checkout. Asked often: what was read once is kept."""
        known, found = self._labels, {}
        for path in self.models.glob("*.json"):
            try:
                status = path.stat()
                same = (status.st_ino, status.st_size, status.st_mtime_ns)
                read, label = known.get(path, (None, None))
                if label is None or read != same:
                    label = msgspec.json.decode(path.read_bytes(), type=Label)
                found[path] = same, label
            except (msgspec.DecodeError, OSError) as error:
                log.warning("store.label_unreadable", path=path.name, error=str(error))
        self._labels = found
        here = [one for one in found.values() if self.checkout(one[1].manifest.digest).is_dir()]
        return [(label, mtime_ns / 1e9) for (_, _, mtime_ns), label in here]

    def files(self) -> dict[str, ManifestFile]:
        """Every file of every checkout, by its sha256."""
        return {file.sha256: file for label, _ in self.labels() for file in label.manifest.files}

    def label(self, manifest: Manifest, model_name: str) -> None:
        """Note what a checkout is, and that it is used now."""
        path = self._label(manifest.digest)
        with contextlib.suppress(OSError, msgspec.DecodeError):
            if msgspec.json.decode(path.read_bytes(), type=Label).model_name == model_name:
                os.utime(path)
                return
        write_whole(path, msgspec.json.encode(Label(manifest, model_name)))

    def mark_used(self, digest: str, at: float | None = None) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._label(digest), None if at is None else (at, at))

    def adopt_unlabelled(self, known: Iterable[Manifest]) -> None:
        """Checkouts of an earlier release say nothing of themselves: those that nobody knows are taken apart."""
        names = {manifest.digest: manifest for manifest in known}
        for folder in self.models.glob("[!.]*"):
            if folder.is_dir() and not self._label(folder.name).exists():
                if folder.name in names:
                    self.label(names[folder.name], "")
                else:
                    shutil.rmtree(folder, ignore_errors=True)
        for link in self.models.glob(".link-*"):
            link.unlink(missing_ok=True)
        for folder in self.models.glob(".gone-*"):  # of an agent that was killed, as those below
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.models.glob(".new-*"):
            if time.time() - folder.stat().st_mtime > 3600:
                shutil.rmtree(folder, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """The checkout goes whole, as it came: what is half there would be taken for the model."""
        self._label(digest).unlink(missing_ok=True)
        gone = self.models / f".gone-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            self.checkout(digest).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def set_aside(self, file: ManifestFile, keep: bool) -> None:
        """A blob that is not what it was goes. `keep`: as a part, so that what is right of it need not come again.

        Copied, as engines that run have the file open, and other stores may have a link to it. Without `keep` it goes
        from the checkouts too: they would hold the room that the right one needs.
        """
        blob, part = self.blob(file.sha256), self.part(file.sha256)
        try:
            with blob.open("rb") as reader:
                blob.unlink()  # first: it is missing from now on, also for another agent if this one is killed
                if keep and not part.exists():
                    self.partial.mkdir(parents=True, exist_ok=True)
                    self._remove_part(part)  # what may be left of it would say that all of it is right
                    _copy_readable(reader, part, file.size_bytes)
        except OSError as error:
            log.info("store.nothing_kept", blob=file.sha256, error=str(error))
            with contextlib.suppress(OSError):
                part.unlink()
        blob.unlink(missing_ok=True)
        if not keep:
            for place in [place for _, one, place in self._places() if one.sha256 == file.sha256]:
                place.unlink(missing_ok=True)

    def _places(self) -> Iterator[tuple[Label, ManifestFile, Path]]:
        """Every file of every checkout."""
        for label, _ in self.labels():
            checkout = self.checkout(label.manifest.digest)
            for file in label.manifest.files:
                yield label, file, checkout / file.path

    def relink(self, sha256s: Collection[str]) -> list[tuple[Label, ManifestFile]]:
        """Checkouts with another file in the place of one of these blobs get the blob; which, and what it is there.

        An engine keeps what it has open. Raises FetchFailed.
        """
        found = []
        for label, file, place in self._places():
            if file.sha256 not in sha256s or _is_same(place, self.blob(file.sha256)):
                continue
            link = self.models / f".link-{uuid.uuid4().hex}"
            try:
                os.link(self.blob(file.sha256), link)
                link.replace(place)
            except OSError as error:
                link.unlink(missing_ok=True)
                if self.checkout(label.manifest.digest).is_dir():  # else it was evicted just now
                    raise FetchFailed(f"{file.path} could not be put back into its place: {error}") from error
            else:
                found.append((label, file))
        return found

    def remove_blob(self, sha256: str) -> None:
        self.blob(sha256).unlink(missing_ok=True)

    def remove_parts(self, but: Iterable[str]) -> int:
        """Parts whose file nobody waits for; bytes freed."""
        kept, freed = set(but), 0
        for path in self.partial.glob("*.part"):
            if path.stem not in kept:
                freed += path.stat().st_blocks * 512
                self._remove_part(path)
        return freed

    def _remove_part(self, part: Path) -> None:
        part.with_suffix(".have").unlink(missing_ok=True)
        part.unlink(missing_ok=True)

    def empty_blob(self, file: ManifestFile) -> None:
        """A file without bytes."""
        if file.sha256 != hashlib.sha256().hexdigest():
            raise FetchFailed(f"{file.path}: a file without bytes has another sha256")
        path = self.blob(file.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o444)

    def take_from(self, folder: Path, file: ManifestFile) -> bool:
        """Take a blob over from a store on the same file system, without a copy; whether it was there.

        Its bytes are hashed all the same: the disk may have changed them.
        """
        self.partial.mkdir(parents=True, exist_ok=True)
        linked = self.partial / f"{file.sha256}.taken"
        try:
            linked.unlink(missing_ok=True)
            os.link(folder / file.sha256[:2] / file.sha256, linked)
        except OSError:  # not there, not ours to link, or on another file system: it is fetched
            return False
        try:
            with linked.open("rb") as data:
                if hashlib.file_digest(data, "sha256").hexdigest() != file.sha256:
                    log.warning("store.neighbour_damaged", blob=file.sha256, folder=str(folder))
                    return False
            target = self.blob(file.sha256)
            target.parent.mkdir(parents=True, exist_ok=True)
            linked.rename(target)
            self._remove_part(self.part(file.sha256))
        except OSError as error:
            log.warning("store.not_taken_over", blob=file.sha256, error=str(error))
            return False
        finally:
            linked.unlink(missing_ok=True)
        return True

    def check_out(self, manifest: Manifest, model_name: str) -> None:
        """Built aside, then moved into place whole. Readable by all: an engine may run as another user."""
        self.models.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.models, prefix=".new-"))
        try:
            folder.chmod(0o755)
            for file in manifest.files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.blob(file.sha256), target)
            self.label(manifest, model_name)
            folder.rename(self.checkout(manifest.digest))
        except FileNotFoundError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise FetchFailed("a file of the model went away while it was checked out") from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _copy_readable(source: BinaryIO, target: Path, size_bytes: int) -> None:
    """With holes where the disk does not give the bytes."""
    with target.open("wb") as writer:
        for at in range(0, size_bytes, PIECE_BYTES):
            with contextlib.suppress(OSError):
                data = os.pread(source.fileno(), min(PIECE_BYTES, size_bytes - at), at)
                writer.seek(at)
                writer.write(data)
        writer.truncate(size_bytes)


def differs(folder: Path, manifest: Manifest) -> str:
    """The first file of a shared folder that is missing or has another size; empty: all is there."""
    for file in manifest.files:
        try:
            size = (folder / file.path).stat().st_size
        except OSError as error:
            return f"{file.path}: {error.strerror or error}"
        if size != file.size_bytes:
            return f"{file.path} has {size} bytes instead of {file.size_bytes}"
    return ""
