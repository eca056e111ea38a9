"""Fragments of models."""

from __future__ import annotations

from typing import Any

from models_registry.models import ModelVersion
from monitoring.live.parts import cells, fragment, list_digest

MODEL_CELLS = ("state", "size", "facts")


def render_list(ask: Any) -> dict[str, str]:
    found = list_digest(ModelVersion.objects.all())
    for version in ModelVersion.objects.filter(pk__in=ask.pks).defer("manifest", "metadata"):
        found |= cells("model", MODEL_CELLS, version)
    return found


def render_one(ask: Any) -> dict[str, str]:
    version = ModelVersion.objects.select_related("model").filter(pk=ask.argument).first()
    if version is None:
        return {"model:head": "gone"}
    return {
        "model:head": fragment("model_head", row=version),
        "model:facts": fragment("model_facts", row=version),
        "model:files": fragment("model_files", row=version, files=version.manifest.get("files", [])),
    }
