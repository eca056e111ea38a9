"""Which version lies where: rows that follow the files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog
from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from models_registry.download.partial import sync_folder
from models_registry.errors import LastCopy, LocationUnreachable, NotReady
from models_registry.location_models import CopyState, StorageLocation, VersionCopy
from models_registry.locations.clean import clean_location
from models_registry.locations.mend import replace_blob
from models_registry.locations.places import builtin, location_of, reach, writable
from models_registry.locations.room import check_files
from models_registry.models import ModelVersion, VersionState
from models_registry.store import Staged, Store
from wire.manifest import Manifest

log = structlog.get_logger(__name__)


def put(row: ModelVersion, staged: Staged) -> VersionCopy:
    """Put staged files in their place, and note the copy: with the store's lock held, in a transaction.

    What was known to be damaged there is replaced by what was staged. Raises QuotaExceeded; then nothing has changed.
    """
    location = location_of(staged.store)
    place(location, staged, replace=known_bad(location))
    return note(row, location, staged)


def place(location: StorageLocation, staged: Staged, *, replace: Collection[str]) -> None:
    """Staged files in their place, with the store's lock held; those of `replace` (sha256) also where one is already,
    and those that lie there with another size.

    Raises QuotaExceeded; then nothing has changed.
    """
    check_files(location, staged.manifest.files)
    for file in staged.manifest.files:
        there = _size(staged.store.blob_path(file.sha256))
        if there >= 0 and (file.sha256 in replace or there != file.size_bytes):
            replace_blob(staged.store, file, staged.folder / file.path)
    staged.store.publish(staged)


def note(row: ModelVersion, location: StorageLocation, staged: Staged) -> VersionCopy:
    """The row of a copy whose files are in their place; other copies that had damaged ones of them are mended too."""
    fields = {"state": CopyState.WHOLE, "bad": [], "problem": "", "verified_at": timezone.now()}
    ours = {"in_place": False, "folder": ""}
    copy, _ = VersionCopy.objects.update_or_create(version=row, location=location, defaults={**fields, **ours})
    copy.files.all().delete()  # had it been in place there
    forget_bad(location, {file.sha256 for file in staged.manifest.files})
    return copy


def known_bad(location: StorageLocation) -> set[str]:
    """sha256 of the files that were found missing or damaged in our store there: they are not to be relied on."""
    copies = VersionCopy.objects.filter(location=location, in_place=False).exclude(state=CopyState.WHOLE)
    return {one["sha256"] for bad in copies.values_list("bad", flat=True) for one in bad}


def forget_bad(location: StorageLocation, mended: Iterable[str]) -> None:
    """Blobs of a store are good again: so is every copy in it that had them."""
    good = set(mended)
    if not good:
        return
    for copy in VersionCopy.objects.filter(location=location, in_place=False).exclude(state=CopyState.WHOLE):
        note_bad(copy, [one for one in copy.bad if one["sha256"] not in good])


def note_bad(copy: VersionCopy, bad: list[dict[str, str]]) -> None:
    """What is wrong with a copy now; [] makes it whole."""
    copy.bad, copy.state, copy.problem = bad, state_of(copy, bad), words_of(bad)
    copy.save(update_fields=["bad", "state", "problem"])


def state_of(copy: VersionCopy, bad: list[dict[str, str]]) -> CopyState:
    """From what is wrong with it."""
    if not bad:
        return CopyState.WHOLE
    if any(one["problem"] != MISSING for one in bad):
        return CopyState.DAMAGED
    count = len(copy.version.manifest.get("files", ()))
    return CopyState.MISSING if len(bad) >= count else CopyState.PARTIAL


MISSING = "is missing"
_MOST_TOLD = 5


def words_of(bad: list[dict[str, str]]) -> str:
    """What is wrong, for a person: the first few files."""
    told = [f"{one['path']} {one['problem']}" for one in bad[:_MOST_TOLD]]
    more = [f"and {len(bad) - _MOST_TOLD} more"] if len(bad) > _MOST_TOLD else []
    return "; ".join(told + more)


def adopt() -> int:
    """Versions without a copy are of the previous release, which had one store: they lie there. How many."""
    rows = ModelVersion.objects.filter(state=VersionState.READY, copies__isnull=True).only("pk")
    if not rows.exists():
        return 0
    place = builtin()
    made = VersionCopy.objects.bulk_create(
        [VersionCopy(version=row, location=place) for row in rows], ignore_conflicts=True
    )
    return len(made)


def copies_of(version: ModelVersion) -> QuerySet[VersionCopy]:
    """Where a version lies."""
    if version.state == VersionState.READY and not version.copies.exists():
        adopt()
    return VersionCopy.objects.filter(version=version).select_related("location", "version__model")


def manifest_of(version: ModelVersion) -> Manifest:
    """Files of a READY version. Raises NotReady."""
    if version.state != VersionState.READY:
        raise NotReady(f"{version} is not ready ({version.get_state_display()}).")
    return msgspec.convert(version.manifest, Manifest)


def delete_copy(copy: VersionCopy) -> None:
    """Remove a copy; files of somebody else's folder stay where they are.

    Raises LastCopy unless a whole copy remains elsewhere, within reach; LocationReadOnly, LocationUnreachable.
    """
    label = str(copy)
    if not copy.in_place:
        writable(copy.location)
    with _safe_from_power_cuts(), transaction.atomic():
        list(ModelVersion.objects.select_for_update().filter(pk=copy.version_id))  # one deletes at a time
        others = copies_of(copy.version).filter(state=CopyState.WHOLE).exclude(pk=copy.pk)
        if not any(is_there(other) for other in others):
            raise LastCopy(f"{label} is the only whole copy within reach.")
        VersionCopy.objects.filter(pk=copy.pk).delete()
    if not copy.in_place:
        clean_location(copy.location)
    log.info("copy.deleted", copy=label)


@contextmanager
def _safe_from_power_cuts() -> Iterator[None]:
    """What is committed within, and was before, is on disk when this ends: files are removed after it.

    SQLite's `synchronous=NORMAL` (see the settings) would let a power cut take the last commits back, and with them
    the row of the copy that stays. PostgreSQL waits for its disk anyway.
    """
    if connection.vendor != "sqlite" or connection.in_atomic_block:
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA synchronous=FULL")
        try:
            yield
        finally:
            cursor.execute("PRAGMA synchronous=NORMAL")


def is_there(copy: VersionCopy) -> bool:
    """Whether every file is there with its size; reads none."""
    try:
        store = reach(copy.location)
    except LocationUnreachable:
        return False
    manifest = manifest_of(copy.version)
    return all(
        _size(copy.path / file.path if copy.in_place else store.blob_path(file.sha256)) == file.size_bytes
        for file in manifest.files
    )


def sync(store: Store, manifest: Manifest) -> None:
    """Make a version that was just published survive a power cut: the files are synced already, not their names."""
    folders = {store.blob_path(file.sha256).parent for file in manifest.files}
    checkout = store.version_path(manifest.digest)
    folders |= {(checkout / file.path).parent for file in manifest.files}
    folders |= {checkout, checkout.parent, store.root / "manifests", store.root, store.root / "blobs" / "sha256"}
    for folder in folders:
        sync_folder(folder)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
