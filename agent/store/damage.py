"""What of the checkouts here is damaged, what of it could not be mended, and what engines may have read of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import structlog

from agent.errors import FetchFailed
from agent.store.shelf import Shelf
from wire.manifest import Manifest, ManifestFile

_TOLD_S = 24 * 3600.0
_NAMES_TOLD = 5

log = structlog.get_logger(__name__)


class Damage:
    """`files`: of checkouts, by sha256; their blobs are missing until they have been fetched again."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.files: dict[str, ManifestFile] = {}
        self.vain: Mapping[str, str] = {}
        """Digests of versions that could not be mended, and why."""
        self.mended: Mapping[str, float] = {}
        """`name: file` of files in use that were damaged and are whole again, and when (Unix time)."""

    def of(self, manifest: Manifest) -> list[str]:
        """Files of a version that are damaged."""
        return [file.sha256 for file in manifest.files if file.sha256 in self.files] if self.files else []

    def problem(self, manifest: Manifest) -> str:
        """Why what is damaged does not come; nothing while it does: the master then waits for it."""
        why = self.vain.get(manifest.digest, "")
        return f"a file was damaged on this disk, and does not come: {why}" if why and self.of(manifest) else ""

    def relink(self, sha256s: Collection[str], in_use: Collection[Manifest]) -> None:
        """Blobs that are right go into every checkout that has another file in their place. Raises FetchFailed."""
        used = {manifest.digest for manifest in in_use}
        changed = self._shelf.relink(set(sha256s))
        for label, file in changed:
            log.info("store.mended", model=label.model_name, file=file.path, blob=file.sha256)
        read = [f"{label.model_name}: {file.path}" for label, file in changed if label.manifest.digest in used]
        if read:
            self.mended = {**self._recently_mended(), **dict.fromkeys(read, time.time())}
            self._shelf.keep_times("mended", self.mended)
        for sha256 in sha256s:
            self.files.pop(sha256, None)

    def alarm(self) -> str:
        """What engines may have read before it was found, for a day."""
        recent = self._recently_mended()
        if not recent:
            return ""
        latest = datetime.fromtimestamp(max(recent.values()), UTC)
        names = sorted(recent)[:_NAMES_TOLD]
        more = f" and {len(recent) - len(names)} more" if len(recent) > len(names) else ""
        return (
            f"files were damaged on this disk and have been fetched again ({', '.join(names)}{more}): "
            f"restart the deployments with engines that were started before {latest:%Y-%m-%d %H:%M} UTC, "
            "they may have read the damage"
        )

    def _recently_mended(self) -> dict[str, float]:
        return {name: at for name, at in self.mended.items() if time.time() - at < _TOLD_S}

    def take_over(self, in_use: Collection[Manifest]) -> None:
        """What an earlier agent left: it may have been killed before it had mended all."""
        self.mended = self._shelf.times("mended")
        files = self._shelf.files()
        self.files = {sha256: file for sha256, file in files.items() if not self._shelf.has_blob(file)}
        try:
            self.relink(files.keys() - self.files.keys(), in_use)
        except FetchFailed as error:
            log.warning("store.not_relinked", reason=error.message)

    def forget_what_went(self) -> None:
        """Files that no checkout has any more."""
        here = self._shelf.files()
        self.files = {sha256: file for sha256, file in self.files.items() if sha256 in here}
