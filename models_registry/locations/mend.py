"""A good file in place of a damaged one, in a store."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from models_registry.location_models import VersionCopy
from models_registry.store import Store
from wire.manifest import ManifestFile


def replace_blob(store: Store, file: ManifestFile, good: Path) -> None:
    """Put `good`, on the same file system, in the place of a blob and of every checkout's link to it.

    Call it with the store's lock held. Each name changes at once, from the damaged file to the good one: whoever reads
    the damaged one meanwhile has it until the end.
    """
    blob = store.blob_path(file.sha256)
    blob.parent.mkdir(parents=True, exist_ok=True)
    for path in (*_checkouts(store, file.sha256), blob):
        if path.parent.is_dir():
            _link_over(good, path)


def drop_other_name(store: Store, sha256: str) -> None:
    """Forget a finished download that is but another name of the blob: when that is damaged, so is this."""
    place = store.downloads / sha256
    if place.is_file() and place.stat().st_nlink > 1:
        drop_download(store, sha256)


def drop_download(store: Store, sha256: str) -> None:
    """It is in its place."""
    place = store.downloads / sha256
    place.with_name(place.name + ".ok").unlink(missing_ok=True)
    place.unlink(missing_ok=True)


def _checkouts(store: Store, sha256: str) -> list[Path]:
    """Every name that the blob should have in a checkout that is there."""
    rows = VersionCopy.objects.filter(in_place=False, version__digest__in=_digests(store))
    manifests = dict(rows.values_list("version__digest", "version__manifest"))
    return [
        store.version_path(digest) / one["path"]
        for digest, manifest in manifests.items()
        for one in manifest.get("files", ())
        if one["sha256"] == sha256
    ]


def _digests(store: Store) -> list[str]:
    return [path.name for path in (store.root / "versions").glob("*")]


def _link_over(good: Path, path: Path) -> None:
    temporary = _temporary(path)
    os.link(good, temporary)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # still there when both were the same file already


def _temporary(path: Path) -> Path:
    """A name beside `path` that nobody else uses."""
    return path.with_name(f".mend-{uuid.uuid4().hex}")
