"""Locations as places on disk: is the right disk there, may it be written, how full is it?

A marker file in each location has its name for us. Where it is missing, the disk is not mounted: such a location is
unreachable, never empty.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import threading
from pathlib import Path

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction

from models_registry.errors import LocationReadOnly, LocationUnreachable
from models_registry.location_models import LocationKind, StorageLocation
from models_registry.store import Store

log = structlog.get_logger(__name__)

MARKER = ".stokehold-location"
_LONGEST_MARKER = 80
_ANSWER_S = 10.0
"""A network file system whose server is away answers never."""


def builtin() -> StorageLocation:
    """That of `MODEL_STORE_DIR`; it makes itself."""
    row = StorageLocation.objects.filter(builtin=True).first()
    if row is not None:
        return row
    taken = StorageLocation.objects.filter(is_default=True).exists()
    fields = {"kind": LocationKind.STORE, "is_default": not taken, "builtin": True}
    try:
        with transaction.atomic():
            return StorageLocation.objects.create(name="default", **fields)
    except IntegrityError:  # another process did
        return StorageLocation.objects.get(builtin=True)


def default() -> StorageLocation:
    """Where imports go when nobody says where."""
    return StorageLocation.objects.filter(is_default=True).first() or builtin()


def location_of(store: Store) -> StorageLocation:
    """The location that has this store."""
    for row in StorageLocation.objects.all():
        if row.store_root == store.root:
            return row
    return builtin()


def reach(location: StorageLocation) -> Store:
    """Its store. Raises LocationUnreachable."""
    if location.builtin and not location.marker:
        mark(location)
    if why := why_unreachable(location):
        raise LocationUnreachable(f"The location {location} cannot be reached: {why}")
    return Store(location.store_root)


def writable(location: StorageLocation) -> Store:
    """Its store, to change things in. Raises LocationReadOnly, LocationUnreachable."""
    if location.read_only:
        raise LocationReadOnly(f"The location {location} is read-only.")
    return reach(location)


def why_unreachable(location: StorageLocation) -> str:
    """A sentence, or '' when the right disk is there. May wait for ever on a dead network file system."""
    try:
        found = read_marker(location.root)
    except OSError as error:
        return f"{location.root}: {error.strerror or error}."
    if not found:
        return f"{location.root / MARKER} is not there, so its disk is not mounted."
    if found != location.marker:
        return f"{location.root / MARKER} is that of another location: another disk is in its place."
    return ""


def read_marker(root: Path) -> str:
    """What the marker file says; '' without one. Raises OSError when the folder cannot be looked at."""
    try:
        with (root / MARKER).open("rb") as file:
            return file.read(_LONGEST_MARKER).decode("utf-8", "replace").replace("\0", "").strip()
    except FileNotFoundError:
        return ""


def mark(location: StorageLocation) -> None:
    """Say that this is it, from now on: for a new location, or after its files were brought to a new disk.

    A marker that is there is taken over; a new one is written. Raises LocationReadOnly, LocationUnreachable.
    """
    root = location.root
    try:
        if location.builtin:
            root.mkdir(parents=True, exist_ok=True)
        found = read_marker(root)
        if not found:
            if location.read_only:
                raise LocationReadOnly(
                    f"The location {location} is read-only, and has no file {MARKER}, which tells that it is mounted.",
                    remedy=f"Make it by hand where it can be written: echo {location.uid} > {root / MARKER}",
                )
            found = str(location.uid)
            _write_marker(root, found)
    except OSError as error:
        raise LocationUnreachable(f"{root} cannot be written: {error.strerror or error}.") from error
    location.marker = found
    StorageLocation.objects.filter(pk=location.pk).update(marker=found)
    log.info("location.marked", location=location.name, path=str(root))


def _write_marker(root: Path, text: str) -> None:
    temporary = root / f"{MARKER}.{os.getpid()}.{threading.get_ident()}"
    try:
        with temporary.open("w") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(root / MARKER)
    finally:
        temporary.unlink(missing_ok=True)


def look(location: StorageLocation, now: dt.datetime) -> StorageLocation:
    """Note whether it is reachable, and how full it is."""
    seen: list[tuple[str, int | None, int | None]] = []
    if location.builtin and not location.marker:
        try:
            mark(location)
        except LocationUnreachable as error:
            seen.append((error.message, None, None))

    def try_it() -> None:
        seen.append(_seen(location))

    if not seen:
        looker = threading.Thread(target=try_it, name=f"look-{location.name}", daemon=True)
        looker.start()
        looker.join(_ANSWER_S)
    silent = (f"{location.root} does not answer in {_ANSWER_S:.0f} s: its server is away.", None, None)
    error, free_bytes, total_bytes = seen[0] if seen else silent
    was_reachable, location.reachable = location.reachable, not error
    location.looked_at, location.error = now, error
    if not error:
        location.free_bytes, location.total_bytes = free_bytes, total_bytes
    location.save(update_fields=["reachable", "looked_at", "error", "free_bytes", "total_bytes"])
    if was_reachable != location.reachable:
        write = log.info if location.reachable else log.error
        write("location.reachable" if location.reachable else "location.unreachable", location=location.name, why=error)
    return location


def _seen(location: StorageLocation) -> tuple[str, int | None, int | None]:
    """Why not reachable, bytes free, bytes in all: no database here, it may hang."""
    if why := why_unreachable(location):
        return why, None, None
    try:
        usage = shutil.disk_usage(location.root)
    except OSError as error:
        return f"{location.root}: {error.strerror or error}.", None, None
    return "", usage.free, usage.total


def run_folder() -> Path:
    """Where locks of work on locations lie: on the master's own disk, whatever is mounted."""
    return Path(settings.HOME.path) / "run" / "storage"
