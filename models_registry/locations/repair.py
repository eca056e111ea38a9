"""Repair of a copy: each damaged or missing file is replaced by a good one from elsewhere, at once."""

from __future__ import annotations

import structlog
from django.utils import timezone

from models_registry.errors import LocationReadOnly, LocationUnreachable
from models_registry.location_models import CopyState, VersionCopy
from models_registry.locations.copies import forget_bad, manifest_of, sync
from models_registry.locations.find import forget_places
from models_registry.locations.mend import drop_download, drop_other_name, replace_blob
from models_registry.locations.places import writable
from models_registry.locations.sources import fetch_anyhow
from models_registry.models import ModelVersion
from models_registry.signals import store_damaged
from models_registry.store import Store
from wire.manifest import Manifest, ManifestFile

log = structlog.get_logger(__name__)


def repair(copy: VersionCopy) -> list[dict[str, str]]:
    """Mend what is known to be wrong with a copy; what stays wrong is returned, logged and told.

    Nothing in a read-only location, or in a folder that is somebody else's, is touched.
    """
    wrong = list(copy.bad)
    if wrong and not copy.in_place:
        _mend(copy)
        copy.refresh_from_db()
        forget_places()
    if copy.bad:
        log.error("store.damaged", copy=str(copy), problem=copy.problem)
        store_damaged.send(VersionCopy, copy=copy, now=timezone.now())
    elif wrong:
        log.warning("store.repaired", copy=str(copy), files=[one["path"] for one in wrong])
    return list(copy.bad)


def _mend(copy: VersionCopy) -> None:
    try:
        store = writable(copy.location)
    except (LocationReadOnly, LocationUnreachable) as error:
        log.warning("store.not_repaired", copy=str(copy), error=error.message)
        return
    manifest = manifest_of(copy.version)
    files = {file.path: file for file in manifest.files}
    wrong = [files[one["path"]] for one in copy.bad if one["path"] in files]
    mended = {file.sha256 for file in wrong if _mend_file(copy.version, store, file)}
    if not mended:
        return
    with store.lock():
        _relink(store, manifest)
        forget_bad(copy.location, mended)
    sync(store, manifest)


def _mend_file(version: ModelVersion, store: Store, file: ManifestFile) -> bool:
    place = store.downloads / file.sha256
    drop_other_name(store, file.sha256)
    if not fetch_anyhow(version, file, place):
        return False
    with store.lock():
        replace_blob(store, file, place)
    drop_download(store, file.sha256)
    return True


def _relink(store: Store, manifest: Manifest) -> None:
    """Make the checkout again where its folder, or a file's name in it, was lost. With the lock held."""
    checkout = store.version_path(manifest.digest)
    for file in manifest.files:
        name, blob = checkout / file.path, store.blob_path(file.sha256)
        if not name.exists() and blob.exists():
            name.parent.mkdir(parents=True, exist_ok=True)
            name.hardlink_to(blob)


def repair_all() -> int:
    """Try again with every copy that is not whole. How many are now."""
    rows = VersionCopy.objects.exclude(state=CopyState.WHOLE).filter(
        in_place=False, version__state="ready", location__reachable=True
    )
    return sum(not repair(copy) for copy in rows.select_related("location", "version__model"))
