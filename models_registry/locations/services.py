"""Verbs of locations: add, change, look, mark, remove."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from pathlib import Path
from typing import Any

import structlog
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Count, Max, QuerySet

from models_registry.errors import BadLocation, LocationInUse, LocationReadOnly, LocationUnreachable
from models_registry.location_models import OWN_FOLDER, UNDER_WAY, LocationKind, StorageLocation, VersionCopy
from models_registry.locations.copies import adopt
from models_registry.locations.find import forget_places
from models_registry.locations.places import MARKER, builtin, look, mark, read_marker, writable
from models_registry.locations.room import stored_copies, used_of
from models_registry.locations.scrub import look_in_place, note_missing, whole_in_place
from models_registry.models import ImportJob, ModelVersion, VersionState
from models_registry.sources import own_paths
from models_registry.store import Store

log = structlog.get_logger(__name__)

_MAY_LIE_THERE = frozenset({"lost+found"})


def locations() -> QuerySet[StorageLocation]:
    """All of them, the built-in one made when it is not there yet."""
    builtin()
    return StorageLocation.objects.all()


def add_location(
    name: str,
    path: str,
    *,
    kind: str = LocationKind.STORE,
    server_path: str = "",
    quota_bytes: int | None = None,
    read_only: bool = False,
    is_default: bool = False,
    now: dt.datetime,
) -> StorageLocation:
    """A new place for models. A store of ours begins empty; a shared folder may hold what it likes.

    Raises BadLocation, LocationReadOnly, LocationUnreachable.
    """
    builtin()
    location = StorageLocation(
        name=name,
        kind=kind,
        path=str(_checked_path(path)),
        server_path=server_path.rstrip("/") if server_path != "/" else server_path,
        quota_bytes=quota_bytes,
        read_only=read_only,
    )
    _check_fields(location)
    if kind == LocationKind.STORE:
        _check_empty(location)
    try:
        with transaction.atomic():
            location.save(force_insert=True)
            mark(location)
            if is_default:
                _make_default(location)
    except IntegrityError as error:
        raise BadLocation(f"There is a location {name} already, or one of this path.") from error
    forget_places()
    log.info("location.added", location=name, path=location.path)
    return look(location, now)


def change_location(location: StorageLocation, **changes: Any) -> StorageLocation:
    """Change name, server_path, quota_bytes, read_only, is_default, or (a store that was brought to a new disk) path.

    Raises BadLocation.
    """
    path, make_default = changes.pop("path", None), changes.pop("is_default", None)
    before = StorageLocation.objects.get(pk=location.pk)
    for field in ("name", "server_path", "quota_bytes", "read_only"):
        if field in changes:
            setattr(location, field, changes[field])
    if path is not None and Path(path) != before.root:
        location.path = str(_moved_path(before, path))
    if make_default is False and before.is_default:
        raise BadLocation("One location is the default.", remedy="Make another one the default.")
    if location.read_only and (before.is_default or make_default):
        raise BadLocation("The default location is written to.", remedy="Make another one the default first.")
    _check_fields(location)
    try:
        with transaction.atomic():
            location.save(update_fields=["name", "path", "server_path", "quota_bytes", "read_only"])
            if make_default:
                _make_default(location)
    except IntegrityError as error:
        raise BadLocation(f"There is a location {location.name} already, or one of this path.") from error
    forget_places()
    log.info("location.changed", location=location.name)
    return location


def remove_location(location: StorageLocation) -> None:
    """Forget a location that holds no version. Files of a shared folder stay, but for our own store in it.

    Raises BadLocation for the built-in one, LocationInUse.
    """
    if location.builtin:
        raise BadLocation("The built-in location stays: it is this installation's own.", remedy="Leave it empty.")
    if count := VersionCopy.objects.filter(location=location, version__in=ModelVersion.objects.all()).count():
        raise LocationInUse(f"{count} versions lie in {location}.")
    busy = location.jobs.filter(state__in=UNDER_WAY).exists() or location.jobs_from.filter(state__in=UNDER_WAY).exists()
    if busy or ImportJob.objects.filter(location=location).exists():
        raise LocationInUse(f"Files are on their way to or from {location}.", remedy="Wait until that is done.")
    _empty(location)
    with transaction.atomic():
        was_default = location.is_default
        VersionCopy.objects.filter(location=location).delete()  # of versions that the previous release has deleted
        location.delete()
        if was_default:
            _make_default(builtin())
    forget_places()
    log.info("location.removed", location=location.name)


def mark_location(location: StorageLocation, now: dt.datetime) -> StorageLocation:
    """Take what is at its path now for this location: after its marker was lost. Raises as `mark`.

    Only for a person who has looked: a disk that is not mounted would be taken for an empty one. Files that are not
    there are noted as missing at once.
    """
    if not location.builtin and not location.root.is_dir():
        raise LocationUnreachable(f"{location.root} is not there.")
    mark(location)
    for copy in stored_copies(location).filter(version__state=VersionState.READY).select_related("version__model"):
        note_missing(copy, Store(location.store_root))
    forget_places()
    return look(location, now)


def look_at(location: StorageLocation, now: dt.datetime) -> StorageLocation:
    """Is it there, how full is it, and is what lies in place as it was?"""
    look(location, now)
    if location.reachable:
        _count(location)
        for copy in whole_in_place(location.pk):
            look_in_place(copy)
    forget_places()
    return location


def _count(location: StorageLocation) -> None:
    """How much of it is ours: counted again when copies have come or gone, for it reads every manifest."""
    found = location.copies.aggregate(count=Count("pk"), last=Max("pk"))
    counted = f"{found['count']}:{found['last']}"
    if counted != location.counted:
        location.used_bytes, location.counted = used_of(location), counted
        location.save(update_fields=["used_bytes", "counted"])


def look_at_all(now: dt.datetime) -> None:
    """By the clock. Rows follow what the previous release has done while it ran beside this one."""
    adopt()
    VersionCopy.objects.exclude(version__in=ModelVersion.objects.all()).delete()
    for location in locations():
        look_at(location, now)


# ------------------------------------------------------------------------------------------------ parts


def _checked_path(path: str, but_for: StorageLocation | None = None) -> Path:
    """Resolved, and nothing of ours. Raises BadLocation."""
    try:
        path.encode()
        if not path.startswith("/") or "\0" in path:
            raise BadLocation(f"{path!r} is no absolute path.")
        real = Path(path).resolve(strict=True)
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        raise BadLocation(f"{path} does not exist on the master's machine, or cannot be read.") from error
    if not real.is_dir() or not os.access(real, os.R_OK | os.X_OK):
        raise BadLocation(f"{path} is no folder that can be read.")
    if any(real.is_relative_to(own) or own.is_relative_to(real) for own in _own(but_for)):
        raise BadLocation(f"{path} holds, or is part of, this installation's home folder or another location.")
    return real


def _own(but_for: StorageLocation | None) -> list[Path]:
    rows = StorageLocation.objects.exclude(pk=but_for.pk if but_for else None)
    own = [*own_paths(), *(row.root for row in rows.filter(builtin=False))]
    skipped = but_for.store_root if but_for else None
    return [path for path in own if path != skipped]


def _check_fields(location: StorageLocation) -> None:
    seen = location.server_path
    if seen and (not seen.startswith("/") or ".." in seen.split("/") or ":" in seen or not seen.isprintable()):
        raise BadLocation(f"{seen!r} is no absolute path that could be mounted.")
    try:
        location.clean_fields(exclude=["path"])
    except ValidationError as error:
        raise BadLocation(" ".join(error.messages), remedy="Correct it and send it again.") from error


def _check_empty(location: StorageLocation) -> None:
    """What is there would be taken for ours, and cleaned."""
    if location.read_only:
        raise BadLocation(
            "A folder of ours begins empty, and a read-only one would stay so.",
            remedy="Make it read-only when it is filled, or add it as shared storage.",
        )
    found = sorted(set(os.listdir(location.root)) - _MAY_LIE_THERE)
    if MARKER in found:
        raise BadLocation(
            f"{location.root} is a location of this or another installation.",
            remedy=f"Give another folder; when nobody uses it any more, empty it, {MARKER} too.",
        )
    if found:
        raise BadLocation(
            f"{location.root} is not empty: there is {found[0]!r}.",
            remedy="Give an empty folder, or make it a location of the kind `shared`, whose files stay as they are.",
        )


def _moved_path(location: StorageLocation, path: str) -> Path:
    """Where a location's files were brought to: its marker came with them. Raises BadLocation."""
    if location.builtin:
        raise BadLocation(
            "The built-in location is where this installation's home folder is.",
            remedy="Add a location on the new disk and make it the default, then move the versions there.",
        )
    real = _checked_path(path, but_for=location)
    if read_marker(real) != location.marker:
        raise BadLocation(
            f"{real} is not this location: its file {MARKER} is missing, or another one.",
            remedy="Bring all files there first (rsync -aH OLD/ NEW/), then change the path.",
        )
    return real


def _make_default(location: StorageLocation) -> None:
    if location.read_only:
        raise BadLocation("The default location is written to.", remedy="Make it writable first.")
    StorageLocation.objects.filter(is_default=True).exclude(pk=location.pk).update(is_default=False)
    location.is_default = True
    location.save(update_fields=["is_default"])


def _empty(location: StorageLocation) -> None:
    """Remove what is ours in it: no version lies there. One that cannot be reached is left as it is."""
    try:
        store = writable(location)
    except (LocationReadOnly, LocationUnreachable):
        return
    if store.root.is_dir():
        with store.lock():
            _empty_store(store)
    if location.kind == LocationKind.SHARED:
        shutil.rmtree(location.store_root, ignore_errors=True)
        own = location.root / OWN_FOLDER
        if own.is_dir() and not any(own.iterdir()):
            own.rmdir()
    if location.marker == str(location.uid):  # not when another installation has made it
        (location.root / MARKER).unlink(missing_ok=True)


def _empty_store(store: Store) -> None:
    for name in ("blobs", "versions", "manifests", "staging", "imports", "uploads", "downloads", "arrivals", ".lock"):
        path = store.root / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
