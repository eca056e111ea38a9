"""Rows of versions and what is written into them: the parts that every kind of import shares."""

from __future__ import annotations

import datetime as dt
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import structlog
from django.db import IntegrityError, transaction
from django.utils import timezone

from models_registry import aliases
from models_registry.errors import RegistryError, VersionTaken
from models_registry.file_locks import held
from models_registry.inspect import ModelFacts, inspect_version
from models_registry.location_models import StorageLocation
from models_registry.locations.copies import put
from models_registry.locations.places import builtin, default, reach, run_folder
from models_registry.models import ImportJob, Model, ModelVersion, VersionState
from models_registry.store import Staged, Store
from wire.manifest import Manifest

log = structlog.get_logger(__name__)
_MAX_NUMBER_LENGTH = 9  # longer digits are a date or a hash, not a number to count on from
_MAX_TEXT = 200
_MOST_LOGGED = 20
_PLAIN_FACTS = (
    *("parameter_count", "active_parameter_count", "context_tokens"),
    *("layers", "hidden_size", "heads", "kv_heads", "head_dim"),
)


def store(location: StorageLocation | None = None) -> Store:
    """The store of a location; without one, that of the default location. Raises LocationUnreachable."""
    return reach(location or default())


def store_of(job: ImportJob) -> Store:
    """The store that an import goes to; jobs of the previous release name none. Raises LocationUnreachable."""
    return reach(job.location or builtin())


def import_lock(job: ImportJob) -> AbstractContextManager[bool]:
    """Whether this process may do an import: `Store.import_lock` of where it goes. Raises LocationUnreachable.

    Of one in place it lies elsewhere: nothing is written where the files are.
    """
    if job.in_place:
        return held(run_folder() / f"import-{job.pk}.lock")
    return store_of(job).import_lock(str(job.pk))


def inspect_staged(staged: Staged) -> ModelFacts:
    """Raises DamagedModel, BadSource."""
    return inspect_version(staged.folder, staged.manifest)


def ready_twin(model: Model, staged: Staged) -> ModelVersion | None:
    """The version of `model` that has these very files."""
    return model.versions.filter(state=VersionState.READY, digest=staged.manifest.digest).first()


def new_row(model: Model, version: str | None, *, source: str, now: dt.datetime, **about: Any) -> ModelVersion:
    """A row that is IMPORTING; without `version` it has the next free number. Raises VersionTaken.

    `about`: what is known of it already: imported_by, license, gated.
    """
    if version is not None:
        _free_version(model, version)
    row = ModelVersion(model=model, version=version or _next_number(model), source=_text(source, 500), **about)
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError as error:
        if version is None:  # somebody took that number just now
            return new_row(model, None, source=source, now=now, **about)
        raise VersionTaken(f"{row} is being imported by somebody else.") from error
    ModelVersion.objects.filter(pk=row.pk).update(created_at=now)
    row.created_at = now
    return row


def _next_number(model: Model) -> str:
    texts = model.versions.values_list("version", flat=True)
    numbers = [int(text) for text in texts if text.isdecimal() and len(text) <= _MAX_NUMBER_LENGTH]
    return str(max(numbers, default=0) + 1)


def _free_version(model: Model, version: str) -> None:
    """Make way for a version: a failed attempt of that name is forgotten, anything else keeps it."""
    taken = model.versions.filter(version=version).first()
    if taken is None:
        if version == aliases.LATEST or model.aliases.filter(name=version).exists():
            raise VersionTaken(f"{model.name}@{version} is an alias.", remedy="Give another version.")
        return
    if taken.state == VersionState.READY:
        raise VersionTaken(f"There is a version {taken} already.")
    if taken.state == VersionState.IMPORTING:
        raise VersionTaken(f"{taken} is being imported.", remedy="Wait until it is done, or give another version.")
    taken.delete()


def publish(row: ModelVersion, staged: Staged, facts: ModelFacts) -> None:
    """Files in place, row READY: called with the store's lock held, in a transaction. Repeating it repairs."""
    aliases.lock_model(row.model_id)
    describe(row, staged.manifest, facts)
    row.save()
    put(row, staged)
    aliases.settle_latest(row.model, by=row.imported_by, now=timezone.now())


def publish_importing(row: ModelVersion, staged: Staged, facts: ModelFacts) -> None:
    """`publish` for a row that was made earlier. Raises RegistryError when it is not waited for any more."""
    check_importing(row, staged.manifest)
    publish(row, staged, facts)


def check_importing(row: ModelVersion, manifest: Manifest) -> None:
    """Raises RegistryError when the row is not waited for any more, VersionTaken when it is here already."""
    row.refresh_from_db()
    if row.state != VersionState.IMPORTING:
        raise RegistryError(f"The import of {row} was ended meanwhile.")
    if twin := row.model.versions.filter(state=VersionState.READY, digest=manifest.digest).first():
        raise VersionTaken(f"The same files are here already, as {twin}.", remedy="Use that version.")


def describe(row: ModelVersion, manifest: Manifest, facts: ModelFacts) -> None:
    """Write what it is into a row that becomes READY; it is not saved."""
    row.state, row.progress, row.error = VersionState.READY, 1.0, ""
    row.manifest = msgspec.to_builtins(manifest)
    row.digest, row.size_bytes = manifest.digest, manifest.size_bytes
    describe_facts(row, facts)
    _warn_of_differing(row, facts)


def _warn_of_differing(row: ModelVersion, facts: ModelFacts) -> None:
    differing = [one for one in facts.scan.signatures if one.differing]
    if differing:
        files = sorted({path for one in differing for path in one.differing})
        log.warning(
            "model.digests_differ",
            model=str(row),
            signatures=[one.path for one in differing[:_MOST_LOGGED]],
            files=files[:_MOST_LOGGED],
        )


def describe_facts(row: ModelVersion, facts: ModelFacts) -> None:
    """What the headers say, into the row's fields. It is not saved."""
    row.format = facts.format
    row.architecture, row.quantization = _text(facts.architecture, 80), _text(facts.quantization, 40)
    for name in _PLAIN_FACTS:
        setattr(row, name, getattr(facts, name))
    row.modality = facts.modality
    row.license = row.license or _text(str(facts.more.get("license", "")), 200)
    row.scan, row.flagged = msgspec.to_builtins(facts.scan), facts.scan.flagged
    row.metadata = {
        **{key: _small(value) for key, value in facts.more.items() if isinstance(value, str | int | float)},
        "entry": facts.entry,
        "tensor_bytes": facts.tensor_bytes,
        "types": {_text(name, 40): counts for name, counts in facts.types.items()},
        "chat_template": facts.chat_template,
    }


def _small(value: str | float) -> str | float:
    return _text(value, _MAX_TEXT) if isinstance(value, str) else value


def _text(text: str, most: int) -> str:
    """A header's text as every database can keep it: printable, no lone surrogates, cut."""
    return "".join(char if char.isprintable() else " " for char in text)[:most].strip()
