"""Aliases: names such as `prod` that point at a READY version, and `latest`, which follows the newest by itself."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from models_registry.errors import AliasInUse, InvalidAlias, NotReady, UnknownVersion, VersionInUse
from models_registry.models import AliasMove, Model, ModelAlias, ModelVersion, VersionState

log = structlog.get_logger(__name__)

LATEST = "latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True)
class Named:
    """A version, and the alias by which it was named; None: by its own number."""

    version: ModelVersion
    alias: ModelAlias | None = None


def set_alias(version: ModelVersion, name: str, *, by: str, now: dt.datetime) -> ModelAlias:
    """Make alias `name` of the version's model, or move it there. `latest` stays there from then on.

    Setting it where it is already does nothing and tells nothing. Raises InvalidAlias, NotReady, UnknownVersion.
    """
    with transaction.atomic():
        lock_model(version.model_id)
        version = _ready(version)
        _check_name(version.model, name)
        return _point(version.model, name, version, pinned=True, by=by, now=now)


def move_alias(alias: ModelAlias, version: ModelVersion, *, by: str, now: dt.datetime) -> ModelAlias:
    """`set_alias` of an alias that is there. Raises InvalidAlias when the version is another model's."""
    if alias.model_id != version.model_id:
        raise InvalidAlias(f"{version} is of another model than {alias}.", remedy="Give a version of its own model.")
    return set_alias(version, alias.name, by=by, now=now)


def release_latest(alias: ModelAlias, *, by: str, now: dt.datetime) -> ModelAlias:
    """Let `latest` follow the newest version by itself again. Raises InvalidAlias for any other."""
    if alias.name != LATEST:
        raise InvalidAlias(f"{alias} does not move by itself.", remedy=f"Only {LATEST!r} does: move this one by hand.")
    with transaction.atomic():
        model = Model.objects.select_for_update().get(pk=alias.model_id)
        newest = newest_ready(model)
        return _point(model, LATEST, newest or alias.version, pinned=False, by=by, now=now)


def delete_alias(alias: ModelAlias, *, by: str, now: dt.datetime) -> None:
    """Raises AliasInUse while a deployment follows it; `latest` comes back by itself, so it can only be released."""
    with transaction.atomic():
        model = Model.objects.select_for_update().get(pk=alias.model_id)
        list(ModelAlias.objects.select_for_update().filter(pk=alias.pk))  # who starts to follow it waits for us now
        row = ModelAlias.objects.select_related("model", "version").filter(pk=alias.pk).first()
        if row is None:
            return
        if followers := followers_of(row):
            raise AliasInUse(f"{row} is followed by {', '.join(followers)}.")
        if row.name == LATEST:
            raise InvalidAlias(f"{row} is always there.", remedy="Let it follow the newest version, or move it.")
        _tell(model, row.name, row.version.version, "", pinned=row.pinned, by=by, now=now)
        row.delete()


def lock_model(model_id: int) -> None:
    """In a transaction: aliases and versions of a model change one after the other. Taken before a version's lock."""
    list(Model.objects.select_for_update().filter(pk=model_id))


def settle_latest(model: Model, *, by: str, now: dt.datetime) -> None:
    """Bring `latest` to the newest READY version, unless somebody pinned it. Harmless when it is there."""
    with transaction.atomic():
        model = Model.objects.select_for_update().get(pk=model.pk)
        alias = model.aliases.select_related("version").filter(name=LATEST).first()
        newest = newest_ready(model)
        if newest is None or (alias is not None and (alias.pinned or alias.version_id == newest.pk)):
            return
        if not model.versions.filter(version=LATEST).exists():  # a version of an older release may have that name
            _point(model, LATEST, newest, pinned=False, by=by, now=now)


def settle_all(now: dt.datetime) -> int:
    """`settle_latest` of the models that need it: those an older release, or a killed process, left. How many."""
    newest = ModelVersion.objects.filter(model=OuterRef("pk"), state=VersionState.READY)
    has_latest = ModelAlias.objects.filter(model=OuterRef("pk"), name=LATEST)
    strange = ModelVersion.objects.filter(model=OuterRef("pk"), version=LATEST)
    missing = Model.objects.filter(Exists(newest)).exclude(Exists(has_latest)).exclude(Exists(strange))
    newer = ModelVersion.objects.filter(
        model=OuterRef("model"), state=VersionState.READY, created_at__gt=OuterRef("version__created_at")
    )
    behind = ModelAlias.objects.filter(Exists(newer), name=LATEST, pinned=False)
    models = [*missing, *(alias.model for alias in behind.select_related("model"))]
    for model in models:
        settle_latest(model, by="", now=now)
    return len(models)


def newest_ready(model: Model, but: ModelVersion | None = None) -> ModelVersion | None:
    """The newest by the time its import began."""
    ready = model.versions.filter(state=VersionState.READY).order_by("-created_at", "-pk")
    return (ready.exclude(pk=but.pk) if but is not None else ready).first()


def leave_version(version: ModelVersion, *, by: str, now: dt.datetime) -> None:
    """Before a version goes, its model locked: `latest` moves on by itself.

    Raises VersionInUse when another alias names it.
    """
    named = list(version.aliases.select_related("model").order_by("name"))
    held = [str(alias) for alias in named if alias.pinned]
    if held:
        raise VersionInUse(
            f"{version} is named by the alias{'es' if len(held) > 1 else ''} {', '.join(held)}.",
            remedy="Move these aliases to another version, or delete them first.",
        )
    for alias in named:
        if (older := newest_ready(alias.model, but=version)) is not None:
            _point(alias.model, alias.name, older, pinned=False, by=by, now=now)
        elif followers := followers_of(alias):
            raise VersionInUse(f"{version} is the only version that {', '.join(followers)} can follow.")
        else:
            _tell(alias.model, alias.name, version.version, "", pinned=False, by=by, now=now)
            alias.delete()


def resolve(text: str) -> Named:
    """`NAME:VERSION`, `NAME@ALIAS`, or `NAME`, which is its newest READY version. Raises UnknownVersion, NotReady."""
    name, _, alias_name = text.partition("@")
    if alias_name:
        return _by_alias(name, alias_name)
    name, _, number = text.partition(":")
    rows = ModelVersion.objects.filter(model__name=name).select_related("model").order_by("-created_at", "-pk")
    found = rows.filter(version=number).first() if number else rows.filter(state=VersionState.READY).first()
    if found is None:
        raise UnknownVersion(f"There is no model version {text!r}.")
    return Named(found)


def followers_of(alias: ModelAlias) -> list[str]:
    """Names of deployments that follow it. They are rows of an app above this one, which points here."""
    return sorted(alias.followers.values_list("name", flat=True))


# ------------------------------------------------------------------------------------------------ parts


def _by_alias(name: str, alias_name: str) -> Named:
    aliases = ModelAlias.objects.filter(model__name=name, name=alias_name).select_related("version__model", "model")
    alias = aliases.first()
    model = Model.objects.filter(name=name).first()
    if alias is None and model is not None and alias_name == LATEST:
        settle_latest(model, by="", now=timezone.now())
        alias = aliases.first()
    if alias is None:
        raise UnknownVersion(f"There is no alias {name}@{alias_name}.")
    return Named(alias.version, alias)


def _ready(version: ModelVersion) -> ModelVersion:
    """As it is now, and locked: it cannot be deleted meanwhile."""
    found = ModelVersion.objects.select_for_update().filter(pk=version.pk).defer("manifest", "metadata").first()
    if found is None:
        raise UnknownVersion(f"{version} is gone.")
    if found.state != VersionState.READY:
        raise NotReady(f"{version} is not ready ({found.get_state_display()}).")
    return found


def _check_name(model: Model, name: str) -> None:
    if not _NAME.fullmatch(name) or name.isdecimal():
        raise InvalidAlias(f"{name!r} is not a name for an alias.")
    if model.versions.filter(version=name).exists():
        raise InvalidAlias(f"{model.name} has a version {name!r}.", remedy="Choose a name that no version has.")


def _point(model: Model, name: str, version: ModelVersion, *, pinned: bool, by: str, now: dt.datetime) -> ModelAlias:
    """With the model's row locked."""
    alias = model.aliases.select_related("version").filter(name=name).first()
    before = alias.version.version if alias is not None else ""
    if alias is not None and (alias.version_id, alias.pinned) == (version.pk, pinned):
        return alias
    alias = alias or ModelAlias(model=model, name=name)
    alias.version, alias.pinned, alias.moved_by, alias.moved_at = version, pinned, by[:150], now
    alias.save()
    _tell(model, name, before, version.version, pinned=pinned, by=by, now=now)
    return alias


def _tell(model: Model, name: str, before: str, after: str, *, pinned: bool, by: str, now: dt.datetime) -> None:
    AliasMove.objects.create(
        model=model, name=name, at=now, by=by[:150], from_version=before, to_version=after, pinned=pinned
    )
    log.info("model_alias.moved", alias=f"{model.name}@{name}", before=before, after=after, by=by)
