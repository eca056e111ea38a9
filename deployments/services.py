"""The verbs of deployments. They decide what should be; the controller and the agents make it so."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, Max

from deployments.errors import (
    BeingDeleted,
    DeploymentInUse,
    InvalidSpec,
    NameInUse,
    NotRunning,
    UnknownRevision,
    VersionConflict,
)
from deployments.events import log_event
from deployments.models import PUBLIC_NAME, Deployment, Revision, Route
from deployments.observe import record_observed
from deployments.preview import Preview, preview
from deployments.routes import feed_routes
from deployments.routing.services import routes_of_deployment
from deployments.specs import MAX_REPLICAS, SpecFields, check_replicas, check_spec, version_of
from deployments.status import DeploymentState, DeploymentStatus, status_of, statuses
from fleet import hints
from models_registry.models import ModelAlias, ModelVersion

__all__ = [
    "MAX_REPLICAS",
    "DeploymentState",
    "DeploymentStatus",
    "Preview",
    "create_deployment",
    "delete",
    "feed_routes",
    "log_event",
    "preview",
    "record_observed",
    "restart",
    "rollback",
    "scale",
    "start",
    "status_of",
    "statuses",
    "stop",
    "update_deployment",
]

_SPEC_FIELDS = ("engine", "runtime", "image", "parameters", "placement")
_PLAIN_FIELDS = ("description", "replicas", "running", "alias")


def create_deployment(
    *,
    name: str,
    model_version: ModelVersion | None = None,
    alias: ModelAlias | None = None,
    engine: str = "llamacpp",
    replicas: int = 1,
    parameters: dict[str, Any] | None = None,
    runtime: str = "auto",
    image: str = "",
    placement: dict[str, Any] | None = None,
    description: str = "",
    running: bool = True,
    actor: str = "",
    now: datetime,
) -> Deployment:
    """A new deployment with its revision 1, of `model_version`, or of what `alias` names, which it then follows.

    Raises InvalidSpec, ModelNotReady, NameInUse, LicenseNotAccepted, PickleRefused, and the adapter's BadParameters
    and UnsuitableModel.
    """
    _check_name(name)
    model_version = version_of(model_version, alias)
    check_replicas(replicas)
    fields = SpecFields(model_version.pk, engine, runtime, image, parameters or {}, placement or {})
    fields = check_spec(model_version, fields)
    try:
        with transaction.atomic():
            deployment = Deployment.objects.create(
                name=name, description=description, replicas=replicas, running=running, alias=alias
            )
            deployment.revision = _add_revision(deployment, 1, fields, actor)
            deployment.save(update_fields=["revision"])
            log_event(
                "deployment.created",
                f"{name} was created with {model_version}, {replicas} {_replicas(replicas)}{_by(actor)}.",
                deployment_id=deployment.pk,
                now=now,
            )
    except IntegrityError as error:
        if _holder_of(name) is None:
            raise
        raise NameInUse(f"there is a deployment {name!r} already") from error
    return deployment


def update_deployment(
    deployment: Deployment, *, if_version: int | None, now: datetime, actor: str = "", **changes: Any
) -> Deployment:
    """The deployment with `changes` applied; a changed spec becomes a new revision, which rolls out.

    `changes`: description, replicas, running, model_version, alias, engine, runtime, image, parameters, placement.
    With `alias` it follows that; with `model_version` alone it follows none any more and stays there.
    `if_version` None: whatever it is now. Raises VersionConflict, BeingDeleted, and what `create_deployment` raises.
    """
    if "model_version" in changes or "alias" in changes:
        changes = {"alias": None, **changes}
    if (alias := changes.get("alias")) is not None:
        changes["model_version"] = version_of(changes.get("model_version"), alias)
    unknown = set(changes) - {*_SPEC_FIELDS, *_PLAIN_FIELDS, "model_version"}
    if unknown:
        raise InvalidSpec(dict.fromkeys(sorted(unknown), "cannot be changed"))
    if "replicas" in changes:
        check_replicas(changes["replicas"])
    with transaction.atomic():
        current = _current(deployment.pk, if_version)
        plain = {key: changes[key] for key in _PLAIN_FIELDS if key in changes and changes[key] != getattr(current, key)}
        revision = _revised(current, changes, actor)
        if revision is None and not plain:
            return current
        values = plain | ({"revision": revision} if revision else {})
        _bump(current, values, now)
        _tell_change(current, plain, revision, actor, now)
        hints.hint_on_commit(hints.FEED, {"type": "changed"})
    return Deployment.objects.select_related("revision__model_version__model").get(pk=deployment.pk)


def start(deployment: Deployment, *, now: datetime, actor: str = "", if_version: int | None = None) -> Deployment:
    """Run it again with the replicas it had."""
    return update_deployment(deployment, if_version=if_version, now=now, actor=actor, running=True)


def stop(deployment: Deployment, *, now: datetime, actor: str = "", if_version: int | None = None) -> Deployment:
    """End its instances once their requests are done; its replicas are kept."""
    return update_deployment(deployment, if_version=if_version, now=now, actor=actor, running=False)


def scale(
    deployment: Deployment, replicas: int, *, now: datetime, actor: str = "", if_version: int | None = None
) -> Deployment:
    return update_deployment(deployment, if_version=if_version, now=now, actor=actor, replicas=replicas)


def restart(deployment: Deployment, *, now: datetime, actor: str = "", if_version: int | None = None) -> Deployment:
    """Replace each instance by a new one, without losing requests: the spec as it is, as a new revision.

    An alias is followed on. Of one that is stopped there is nothing to restart: raises NotRunning. Raises
    VersionConflict, BeingDeleted.
    """
    with transaction.atomic():
        current = _current(deployment.pk, if_version)
        if not current.running or current.revision is None:
            raise NotRunning(f"{current.name} is stopped")
        revision = _add_revision(current, _next_number(current), SpecFields.of(current.revision), actor)
        _bump(current, {"revision": revision}, now)
        message = f"{current.name} is restarted{_by(actor)}, as revision {revision.number}."
        log_event("deployment.restarted", message, deployment_id=current.pk, now=now)
        hints.hint_on_commit(hints.FEED, {"type": "changed"})
    return Deployment.objects.select_related("revision__model_version__model").get(pk=deployment.pk)


def rollback(
    deployment: Deployment, number: int, *, now: datetime, actor: str = "", if_version: int | None = None
) -> Deployment:
    """Roll out the spec of revision `number` again, as a new revision; an alias is followed no more.

    Raises UnknownRevision.
    """
    revision = deployment.revisions.filter(number=number).select_related("model_version__model").first()
    if revision is None:
        raise UnknownRevision(f"{deployment.name} has no revision {number}")
    changes = {name: getattr(revision, name) for name in _SPEC_FIELDS} | {"model_version": revision.model_version}
    return update_deployment(deployment, if_version=if_version, now=now, actor=actor, **changes)


def delete(deployment: Deployment, *, now: datetime, actor: str = "", if_version: int | None = None) -> None:
    """Stop it and let it go: its name is free at once, its row ends when its last instance has.

    Raises DeploymentInUse, VersionConflict, BeingDeleted.
    """
    with transaction.atomic():
        current = _current(deployment.pk, if_version)
        if routes := routes_of_deployment(current):
            raise DeploymentInUse(f"{current.name} is a target of the routes {', '.join(routes)}")
        _bump(current, {"deleted_at": now, "running": False, "alias": None}, now)
        log_event(
            "deployment.deleted", f"{current.name} is being deleted{_by(actor)}.", deployment_id=current.pk, now=now
        )
        hints.hint_on_commit(hints.FEED, {"type": "changed"})


def _current(pk: int, if_version: int | None) -> Deployment:
    """The row as it is now, locked where the database can: changes at the same time come one after the other."""
    Deployment.objects.select_for_update().get(pk=pk)  # alone: one that waited would see what it joins as it was before
    current = Deployment.objects.select_related("revision__model_version__model", "alias").get(pk=pk)
    if current.deleted_at is not None:
        raise BeingDeleted(f"{current.name} is being deleted")
    if if_version is not None and current.version != if_version:
        raise _conflict(current.name, current.version)
    return current


def _bump(current: Deployment, values: dict[str, Any], now: datetime) -> None:
    """Write `values` if nobody else wrote since `current` was read."""
    rows = Deployment.objects.filter(pk=current.pk, version=current.version, deleted_at__isnull=True)
    if not rows.update(version=F("version") + 1, updated_at=now, **values):
        raise _conflict(current.name, Deployment.objects.values_list("version", flat=True).get(pk=current.pk))


def _conflict(name: str, version: int) -> VersionConflict:
    return VersionConflict(f"{name} was changed meanwhile: it is at version {version} now", current_version=version)


def _revised(current: Deployment, changes: dict[str, Any], actor: str) -> Revision | None:
    """The new revision that `changes` make; None when the spec stays what it is."""
    revision = current.revision
    if revision is None or not set(changes) & {*_SPEC_FIELDS, "model_version"}:
        return None
    version = changes.get("model_version", revision.model_version)
    before = SpecFields.of(revision)
    wanted = replace(
        before, model_version_id=version.pk, **{key: changes[key] for key in _SPEC_FIELDS if key in changes}
    )
    wanted = check_spec(version, wanted)
    if wanted == before:
        return None
    return _add_revision(current, _next_number(current), wanted, actor)


def _next_number(deployment: Deployment) -> int:
    return (deployment.revisions.aggregate(last=Max("number"))["last"] or 0) + 1


def _add_revision(deployment: Deployment, number: int, fields: SpecFields, actor: str) -> Revision:
    return Revision.objects.create(
        deployment=deployment,
        number=number,
        model_version_id=fields.model_version_id,
        engine=fields.engine,
        runtime=fields.runtime,
        image=fields.image,
        parameters=fields.parameters,
        placement=fields.placement,
        created_by=actor[:150],
    )


def _tell_change(
    current: Deployment, plain: dict[str, Any], revision: Revision | None, actor: str, now: datetime
) -> None:
    told = []
    if revision is not None:
        told.append(f"revision {revision.number} with {revision.model_version}")
    if "replicas" in plain:
        told.append(f"{current.replicas} -> {plain['replicas']} {_replicas(plain['replicas'])}")
    if "running" in plain:
        told.append("started" if plain["running"] else "stopped")
    if "alias" in plain:
        told.append(f"follows {plain['alias']}" if plain["alias"] else "stays at its version")
    if "description" in plain:
        told.append("description")
    message = f"{current.name} was changed{_by(actor)}: {', '.join(told)}."
    log_event("deployment.changed", message, deployment_id=current.pk, now=now)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not PUBLIC_NAME.regex.fullmatch(name):
        raise InvalidSpec({"name": str(PUBLIC_NAME.message)})
    if _holder_of(name) is not None:
        raise NameInUse(f"there is a deployment {name!r} already")
    if Route.objects.filter(name=name).exists():
        raise NameInUse(f"there is a route {name!r} already")


def _holder_of(name: str) -> Deployment | None:
    return Deployment.objects.filter(name=name, deleted_at__isnull=True).first()


def _replicas(count: int) -> str:
    return "replica" if count == 1 else "replicas"


def _by(actor: str) -> str:
    return f" by {actor}" if actor else ""
