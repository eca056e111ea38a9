"""Verbs of the model registry: take in files as an immutable version, and remove it when nothing uses it."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import msgspec
import structlog
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError
from kombu.exceptions import OperationalError

from models_registry.errors import BadSource, InvalidName, NotReady, RegistryError, VersionInUse, VersionTaken
from models_registry.inspect import ModelFacts, inspect
from models_registry.models import Model, ModelVersion, VersionState
from models_registry.store import Progress, Staged, Store, scan
from wire.manifest import Manifest

log = structlog.get_logger(__name__)

IMPORT_DEADLINE = dt.timedelta(hours=12)
"""An import that is still not done after this is called failed; the broker's visibility timeout is as long."""
_PROGRESS_EVERY_S = 0.5


def store() -> Store:
    """This installation's store."""
    return Store(Path(settings.MODEL_STORE_DIR))


def import_path(
    name: str,
    path: Path,
    *,
    version: str | None = None,
    link: bool = False,
    source: str = "",
    now: dt.datetime,
    progress: Progress | None = None,
) -> ModelVersion:
    """Take a file or folder on this machine in as a version of model `name`; READY when this returns.

    The same files under the same name are the same version: it is returned, whatever `version` says. Without
    `version` the next free number is taken. A failure leaves no row and no file behind.

    Raises BadSource, DamagedModel, NoSpace, InvalidName, VersionTaken.
    """
    path = _checked_request(name, path, version)
    with store().stage(path, link=link, progress=progress) as staged:
        facts = _inspect(staged)
        with store().lock(), transaction.atomic():
            model, _ = Model.objects.get_or_create(name=name)
            row = _ready_twin(model, staged) or _new_row(model, version, source=source or str(path), now=now)
            _publish(row, staged, facts)
    log.info("model.imported", model=str(row), digest=row.digest, size_bytes=row.size_bytes)
    return row


def start_import(
    name: str,
    path: Path,
    *,
    version: str | None = None,
    link: bool = False,
    source: str = "",
    now: dt.datetime,
) -> ModelVersion:
    """Like `import_path`, by a worker: the row is IMPORTING now, and READY or FAILED (with `error`) later.

    What can be said at once is: raises BadSource, InvalidName, VersionTaken.
    """
    path = _checked_request(name, path, version)
    scan(path)
    with transaction.atomic():
        model, _ = Model.objects.get_or_create(name=name)
        row = _new_row(model, version, source=source or str(path), now=now)
        transaction.on_commit(lambda: _enqueue(row, path, link))
    log.info("model.import_started", model=str(row), source=row.source)
    return row


def start_upload(
    name: str, temporary: Path, file_name: str, *, version: str | None = None, now: dt.datetime
) -> ModelVersion:
    """Take in a file that a person sent; `temporary` is moved away. Raises as `start_import`."""
    _checked_name(name, version)
    kept = store().keep_upload(temporary, file_name)
    try:
        return start_import(name, kept, version=version, link=True, source=f"upload of {file_name}"[:500], now=now)
    except Exception:
        store().drop_upload(kept)
        raise


def finish_import(version_id: int, path: Path, *, link: bool) -> VersionState | None:
    """The worker's part of `start_import`; calling it again, or after a killed worker, is harmless.

    Returns the state it ended in, None when the row is gone.
    """
    row = ModelVersion.objects.select_related("model").filter(pk=version_id).first()
    if row is None or row.state != VersionState.IMPORTING:
        store().drop_upload(path)
        return VersionState(row.state) if row else None
    try:
        with store().stage(path, link=link, progress=_row_progress(row.pk)) as staged:
            facts = _inspect(staged)
            with store().lock(), transaction.atomic():
                _publish_importing(row, staged, facts)
    except (RegistryError, OSError) as error:
        return fail_import(row, error)
    store().drop_upload(path)
    log.info("model.imported", model=str(row), digest=row.digest, size_bytes=row.size_bytes)
    return VersionState.READY


def fail_import(row: ModelVersion, error: Exception) -> VersionState:
    """Mark an import as failed, in words; an import that became READY meanwhile stays so."""
    text = f"{error.message} {error.remedy}" if isinstance(error, RegistryError) else f"The import broke off: {error}."
    importing = ModelVersion.objects.filter(pk=row.pk, state=VersionState.IMPORTING)
    importing.update(state=VersionState.FAILED, error=text)
    log.warning("model.import_failed", model=str(row), error=text)
    return VersionState.FAILED


def expire_imports(now: dt.datetime) -> int:
    """Call imports failed that no worker has finished in IMPORT_DEADLINE."""
    return ModelVersion.objects.filter(state=VersionState.IMPORTING, created_at__lt=now - IMPORT_DEADLINE).update(
        state=VersionState.FAILED,
        error="The import did not end in 12 hours: no worker was running, or it was lost. Import the model again.",
    )


def delete_version(version: ModelVersion) -> None:
    """Remove a version, and the files that no other version needs.

    Raises VersionInUse while a deployment that was not deleted uses it, NotReady while it is being imported.
    """
    label = str(version)
    if version.state == VersionState.IMPORTING:
        raise NotReady(f"{label} is being imported.", remedy="Wait until the import is done, then delete it.")
    with transaction.atomic():
        if users := _live_users(version):
            raise VersionInUse(f"{label} is used by {', '.join(users)}.")
        model = version.model
        try:
            version.delete()
        except ProtectedError as error:
            raise VersionInUse(
                f"{label} is still named by revisions of deployments that are going away.",
                remedy="Try again when their last instances have ended.",
            ) from error
        if not model.description and not model.versions.exists():
            model.delete()
        transaction.on_commit(clean_store)
    log.info("model.deleted", model=label)


def clean_store() -> int:
    """Remove files that no version needs, and what interrupted imports left. Bytes freed."""
    store_ = store()
    store_.clean_leftovers()
    with store_.lock():
        return store_.delete_unreferenced(_digests_in_use())


def delete_model(model: Model) -> None:
    """Remove a model without versions. Raises VersionInUse when it has some."""
    if count := model.versions.count():
        raise VersionInUse(f"{model.name} has {count} versions.", remedy="Delete its versions first.")
    model.delete()


def manifest_of(version: ModelVersion) -> Manifest:
    """Files of a READY version, as they travel to agents. Raises NotReady."""
    if version.state != VersionState.READY:
        raise NotReady(f"{version} is not ready ({version.get_state_display()}).")
    return msgspec.convert(version.manifest, Manifest)


def verify_version(version: ModelVersion) -> list[str]:
    """Paths of a READY version whose bytes in the store are not what they should be; reads all of them."""
    return store().verify(manifest_of(version))


# ------------------------------------------------------------------------------------------------ parts


def _checked_request(name: str, path: Path, version: str | None) -> Path:
    _checked_name(name, version)
    try:
        real = Path(path).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BadSource(f"{path} does not exist on the master's machine, or cannot be read.") from error
    home = Path(settings.HOME.path).resolve()
    uploads = Path(settings.MODEL_STORE_DIR).resolve() / "uploads"
    if home.is_relative_to(real) or (real.is_relative_to(home) and not real.is_relative_to(uploads)):
        raise BadSource(
            f"{path} holds, or is part of, this installation's own home folder.",
            remedy="Give a folder that holds the model's files only.",
        )
    return Path(path).absolute()


def _checked_name(name: str, version: str | None) -> None:
    try:
        Model._meta.get_field("name").clean(name, None)
        if version is not None:
            ModelVersion._meta.get_field("version").clean(version, None)
    except ValidationError as error:
        raise InvalidName(" ".join(error.messages)) from error


def _inspect(staged: Staged) -> ModelFacts:
    return inspect(staged.folder, [file.path for file in staged.manifest.files])


def _enqueue(row: ModelVersion, path: Path, link: bool) -> None:
    from models_registry.tasks import import_version  # tasks call services: this is the one way back

    try:
        import_version.delay(row.pk, str(path), link)
    except OperationalError as error:
        fail_import(row, RegistryError(f"No worker can be reached: {error}.", remedy="Start Valkey, then try again."))


def _ready_twin(model: Model, staged: Staged) -> ModelVersion | None:
    return model.versions.filter(state=VersionState.READY, digest=staged.manifest.digest).first()


def _new_row(model: Model, version: str | None, *, source: str, now: dt.datetime) -> ModelVersion:
    if version is None:
        numbers = [int(text) for text in model.versions.values_list("version", flat=True) if text.isdecimal()]
        version = str(max(numbers, default=0) + 1)
    _free_version(model, version)
    row = ModelVersion(model=model, version=version, source=source[:500])
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError as error:
        raise VersionTaken(f"{row} is being imported by somebody else.") from error
    ModelVersion.objects.filter(pk=row.pk).update(created_at=now)
    row.created_at = now
    return row


def _free_version(model: Model, version: str) -> None:
    """Make way for a version: a failed attempt of that name is forgotten, anything else keeps it."""
    taken = model.versions.filter(version=version).first()
    if taken is None:
        return
    if taken.state == VersionState.READY:
        raise VersionTaken(f"There is a version {taken} with other files already.")
    if taken.state == VersionState.IMPORTING:
        raise VersionTaken(f"{taken} is being imported.", remedy="Wait until it is done, or give another version.")
    taken.delete()


def _publish(row: ModelVersion, staged: Staged, facts: ModelFacts) -> None:
    """Files in place, row READY: called with the store's lock held, in a transaction. Repeating it repairs."""
    store().publish(staged)
    _describe(row, staged.manifest, facts)
    row.save()


def _publish_importing(row: ModelVersion, staged: Staged, facts: ModelFacts) -> None:
    row.refresh_from_db()
    if row.state != VersionState.IMPORTING:
        raise RegistryError(f"The import of {row} was ended meanwhile.")
    if twin := _ready_twin(row.model, staged):
        raise VersionTaken(f"The same files are here already, as {twin}.", remedy="Use that version.")
    _publish(row, staged, facts)


def _describe(row: ModelVersion, manifest: Manifest, facts: ModelFacts) -> None:
    row.state, row.progress, row.error = VersionState.READY, 1.0, ""
    row.manifest = msgspec.to_builtins(manifest)
    row.digest, row.size_bytes = manifest.digest, manifest.size_bytes
    for name in (
        "format",
        "architecture",
        "parameter_count",
        "context_tokens",
        "layers",
        "hidden_size",
        "heads",
        "kv_heads",
        "head_dim",
        "quantization",
    ):
        setattr(row, name, getattr(facts, name))
    row.metadata = {
        **facts.more,
        "entry": facts.entry,
        "tensor_bytes": facts.tensor_bytes,
        "chat_template": facts.chat_template,
    }


def _row_progress(version_id: int) -> Progress:
    """Keeps the row's progress up to date, twice a second at most."""
    last_s = float("-inf")

    def note(share: float) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= _PROGRESS_EVERY_S:
            last_s = time.monotonic()
            ModelVersion.objects.filter(pk=version_id, state=VersionState.IMPORTING).update(progress=round(share, 4))

    return note


def _live_users(version: ModelVersion) -> list[str]:
    """Names of deployments, not deleted, with a revision of this version."""
    live = version.revisions.filter(deployment__deleted_at__isnull=True)
    return sorted(set(live.values_list("deployment__name", flat=True)))


def _digests_in_use() -> set[str]:
    return set(ModelVersion.objects.exclude(digest="").values_list("digest", flat=True))
