"""From rows to the values that adapters and scheduler work on, and the check of what a person wants deployed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from deployments import engines
from deployments.engines.base import BadParameters, Estimate, ModelFacts, ModelFile, Resources
from deployments.errors import InvalidSpec, ModelNotReady
from deployments.models import Instance, Revision
from deployments.permits import check_permits, manifest_for
from models_registry.locations import shared_dir
from models_registry.models import ModelAlias, ModelVersion, VersionState
from wire.engine import RuntimeKind, spec_hash
from wire.manifest import Manifest
from wire.messages import InstanceSpec

_IMAGE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:/@-]{0,299}")
MAX_GPUS = 64
MAX_REPLICAS = 1000


@dataclass(frozen=True)
class SpecFields:
    """What makes a revision; two revisions with equal fields are the same spec."""

    model_version_id: int
    engine: str = "llamacpp"
    runtime: str = RuntimeKind.AUTO.value
    image: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    placement: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, revision: Revision) -> SpecFields:
        return cls(
            revision.model_version_id,
            revision.engine,
            revision.runtime,
            revision.image,
            revision.parameters,
            revision.placement,
        )


def model_facts(version: ModelVersion) -> ModelFacts:
    """`version.model` must be loaded."""
    files = version.manifest.get("files", ())
    return ModelFacts(
        name=str(version),
        format=version.format,
        files=tuple(ModelFile(file["path"], file["size_bytes"]) for file in files),
        architecture=version.architecture,
        context_tokens=version.context_tokens,
        layers=version.layers,
        hidden_size=version.hidden_size,
        heads=version.heads,
        kv_heads=version.kv_heads,
        head_dim=version.head_dim,
        tensor_bytes=_whole(version.metadata.get("tensor_bytes")),
        vocabulary=_whole(version.metadata.get("vocabulary")),
    )


def version_of(version: ModelVersion | None, alias: ModelAlias | None) -> ModelVersion:
    """The version to deploy: of an alias, the one it names now. Raises InvalidSpec when neither, or both, say it."""
    if alias is not None:
        found = ModelAlias.objects.select_related("version__model").filter(pk=alias.pk).first()
        if found is None:
            raise InvalidSpec({"model": f"{alias} is gone"})
        if version is not None and version.model_id != found.model_id:
            raise InvalidSpec({"model": f"{alias} is of another model than {version}"})
        return found.version
    if version is None:
        raise InvalidSpec({"model_version": "name a version, or an alias"})
    return version


def check_replicas(replicas: Any) -> None:
    """Raises InvalidSpec."""
    if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas <= MAX_REPLICAS:
        raise InvalidSpec({"replicas": f"must be a whole number from 0 to {MAX_REPLICAS}"})


def check_spec(version: ModelVersion, fields: SpecFields) -> SpecFields:
    """`fields` as they may be stored. Raises InvalidSpec, ModelNotReady, LicenseNotAccepted, PickleRefused, and the
    adapter's errors."""
    errors: dict[str, Any] = {}
    if fields.engine not in engines.names():
        errors["engine"] = f"there is no engine {fields.engine!r}; known: {', '.join(engines.names())}"
    if fields.runtime not in {kind.value for kind in RuntimeKind}:
        errors["runtime"] = f"must be one of {', '.join(kind.value for kind in RuntimeKind)}"
    if fields.image and not _IMAGE.fullmatch(fields.image):
        errors["image"] = "is not the name of an image"
    if problem := _placement_problem(fields.placement):
        errors["placement"] = problem
    if not isinstance(fields.parameters, dict):
        errors["parameters"] = "must be an object"
    if errors:
        raise InvalidSpec(errors)
    if version.state != VersionState.READY:
        raise ModelNotReady(f"{version} is {version.get_state_display()}, not ready")
    adapter, facts = engines.get(fields.engine), model_facts(version)
    parameters = adapter.check(facts, fields.parameters)
    check_permits(version, adapter.weights(facts))
    placement = {key: value for key, value in fields.placement.items() if value not in ({}, [], None)}
    return SpecFields(version.pk, fields.engine, fields.runtime, fields.image, parameters, placement)


def estimate(version: ModelVersion, fields: SpecFields, gpus: int) -> Estimate:
    """Memory of one instance. Raises the adapter's errors."""
    return engines.get(fields.engine).estimate(model_facts(version), fields.parameters, gpus)


def instance_spec(instance: Instance) -> InstanceSpec:
    """What the agent is told. `instance` needs its revision, deployment, model version and model loaded.

    The hash covers what makes an engine run differently; a changed reservation or hint restarts nothing.
    """
    revision = instance.revision
    version = revision.model_version
    resources = Resources(instance.memory_bytes, tuple(instance.gpu_indexes), instance.gpu_memory_bytes)
    adapter, facts = engines.get(revision.engine), model_facts(version)
    engine = adapter.build_spec(
        facts,
        revision.parameters,
        resources,
        served_name=instance.deployment.name,
        image=revision.image,
    )
    manifest = manifest_for(version, adapter.weights(facts))
    runs = msgspec.structs.replace(engine, memory_bytes=0, failure_hints=())
    return InstanceSpec(
        instance_id=instance.pk,
        deployment=instance.deployment.name,
        revision=revision.number,
        runtime=RuntimeKind(revision.runtime),
        engine=engine,
        model=manifest,
        model_name=str(version),
        spec_hash=spec_hash(runs, manifest.digest, revision.runtime),
        shared_dir=shared_dir(version),
    )


def manifest_of(revision: Revision) -> Manifest:
    """What servers get of a revision's model version. `revision` needs its model version and model loaded."""
    version = revision.model_version
    return manifest_for(version, engines.get(revision.engine).weights(model_facts(version)))


def digest_of(revision: Revision) -> str:
    """Digest of `manifest_of`; cheap but for versions with files that can run code."""
    version = revision.model_version
    return manifest_of(revision).digest if version.flagged else version.digest


def parse_parameters(engine: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Parameters from `name=text` pairs of a command line. Raises BadParameters, UnknownEngine."""
    schema = engines.get(engine).schema
    known = {parameter.name for parameter in schema.parameters}
    if unknown := set(texts) - known:
        raise BadParameters(dict.fromkeys(sorted(unknown), f"is not a parameter of {engine}"))
    return {name: schema.parse(name, text) for name, text in texts.items()}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _placement_problem(placement: Any) -> str:
    if not isinstance(placement, dict):
        return "must be an object"
    if unknown := set(placement) - {"labels", "servers", "gpus"}:
        return f"has no field {', '.join(sorted(map(str, unknown)))}; known: labels, servers, gpus"
    labels, servers, gpus = placement.get("labels"), placement.get("servers"), placement.get("gpus")
    if labels is not None and not (
        isinstance(labels, dict) and all(isinstance(value, str) for pair in labels.items() for value in pair)
    ):
        return "labels must be an object of texts"
    if servers is not None and not (isinstance(servers, list) and all(isinstance(name, str) for name in servers)):
        return "servers must be a list of server names"
    if gpus is not None and (not isinstance(gpus, int) or isinstance(gpus, bool) or not 0 <= gpus <= MAX_GPUS):
        return f"gpus must be a whole number from 0 to {MAX_GPUS}, or absent"
    return ""
