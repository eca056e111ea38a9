"""Pins: versions that servers should always have, fetched ahead and never evicted."""

from __future__ import annotations

import structlog
from django.db import transaction

from fleet.hints import FEED, hint_on_commit
from fleet.models import Server
from models_registry.errors import NotReady, RegistryError
from models_registry.models import ModelVersion, Pin, VersionState

log = structlog.get_logger(__name__)


class NotPinned(RegistryError):
    code = "not_pinned"
    status = 404
    remedy = "Look at the version's pins: it may be pinned to every server."


def pin(version: ModelVersion, server: Server | None) -> Pin:
    """Have a version on a server (None: on all, also those that join later) from now on. Repeating it is harmless.

    Raises NotReady, RegistryError for a server that was revoked.
    """
    if version.state != VersionState.READY:
        raise NotReady(f"{version} is not ready ({version.get_state_display()}).")
    if server is not None and server.revoked_at is not None:
        raise RegistryError(f"{server.name} was revoked.", remedy="Choose another server.")
    with transaction.atomic():
        row, made = Pin.objects.get_or_create(version=version, server=server)
        hint_on_commit(FEED, {"type": "changed"})
    if made:
        log.info("model.pinned", model=str(version), server=server.name if server else None)
    return row


def unpin(version: ModelVersion, server: Server | None) -> None:
    """Let it go; it stays on the server until its room is needed. Raises NotPinned."""
    with transaction.atomic():
        gone, _ = Pin.objects.filter(version=version, server=server).delete()
        if not gone:
            raise NotPinned(f"{version} is not pinned to {server.name if server else 'every server'}.")
        hint_on_commit(FEED, {"type": "changed"})
    log.info("model.unpinned", model=str(version), server=server.name if server else None)


def pinned() -> list[tuple[int, str, bool, str | None]]:
    """(version, its digest, whether it is flagged, server or None for all) of every pin of a READY version."""
    ready = Pin.objects.filter(version__state=VersionState.READY)
    return list(ready.values_list("version_id", "version__digest", "version__flagged", "server_id"))
