"""Removing versions and models, and the files that nothing needs any more."""

from __future__ import annotations

import structlog
from django.db import transaction
from django.db.models import ProtectedError
from django.utils import timezone

from models_registry import aliases
from models_registry.errors import NotReady, VersionInUse
from models_registry.locations.clean import clean_all
from models_registry.models import Model, ModelVersion, VersionState
from models_registry.pieces import clean_pieces

log = structlog.get_logger(__name__)


def delete_version(version: ModelVersion, *, by: str = "") -> None:
    """Remove a version, and the files that no other version needs.

    Raises VersionInUse while a deployment that was not deleted uses it or an alias names it, NotReady while it is
    being imported.
    """
    label = str(version)
    if version.state == VersionState.IMPORTING:
        raise NotReady(
            f"{label} is being imported.", remedy="Cancel the import, or wait until it is done, then delete it."
        )
    with transaction.atomic():
        aliases.lock_model(version.model_id)
        list(ModelVersion.objects.select_for_update().filter(pk=version.pk))  # a revision of it waits for us now
        if users := _live_users(version):
            raise VersionInUse(f"{label} is used by {', '.join(users)}.")
        aliases.leave_version(version, by=by, now=timezone.now())
        model = version.model
        try:
            version.delete()
        except ProtectedError as error:
            raise VersionInUse(
                f"{label} is still named by revisions of deployments that are going away.",
                remedy="Try again when their last instances have ended.",
            ) from error
        if not (model.description or model.notes or model.tags or model.versions.exists()):
            model.delete()
        transaction.on_commit(clean_store)
    log.info("model.deleted", model=label)


def clean_store() -> int:
    """Remove files that no version needs, and what interrupted imports left, everywhere. Bytes freed."""
    manifests = ModelVersion.objects.exclude(digest="").values_list("manifest", flat=True)
    clean_pieces({file["sha256"] for manifest in manifests for file in manifest.get("files", ())})
    return clean_all()


def delete_model(model: Model) -> None:
    """Remove a model without versions. Raises VersionInUse when it has some."""
    if count := model.versions.count():
        raise VersionInUse(f"{model.name} has {count} versions.", remedy="Delete its versions first.")
    model.delete()


def _live_users(version: ModelVersion) -> list[str]:
    """Names of deployments, not deleted, with a revision of this version."""
    live = version.revisions.filter(deployment__deleted_at__isnull=True)
    return sorted(set(live.values_list("deployment__name", flat=True)))
