"""Fragments of models."""

from __future__ import annotations

from typing import Any

from fleet.models import Server
from models_registry.catalog import files_of
from models_registry.location_models import StorageJob
from models_registry.locations.copies import copies_of
from models_registry.models import ImportJob, ModelVersion
from monitoring.live.parts import LIST_SLOT, cells, fragment, list_digest

MODEL_CELLS = ("state", "size", "facts")
MOST_FILES_SHOWN = 300
"""All of it is made anew for each look of a live page."""


def render_list(ask: Any) -> dict[str, str]:
    found = list_digest(ModelVersion.objects.all())
    for version in ModelVersion.objects.filter(pk__in=ask.pks).defer("manifest", "metadata", "scan"):
        found |= cells("model", MODEL_CELLS, version)
    return found


def render_one(ask: Any) -> dict[str, str]:
    version = ModelVersion.objects.select_related("model").filter(pk=ask.argument).first()
    if version is None:
        return {"model:head": fragment("model_gone"), LIST_SLOT: "gone"}
    work = StorageJob.objects.filter(version=version).select_related("location", "source").first()
    job = ImportJob.objects.filter(ImportJob.FETCHED, pk=version.pk).first()
    fetching, paused = (job.detail, job.paused) if job is not None else ({}, False)
    files = sorted(files_of(version), key=lambda file: not file["flags"])  # what to see to comes first
    return {
        LIST_SLOT: version.state + (" paused" if paused else ""),  # as the page has it in `data-live-list`
        "model:head": fragment("model_head", row=version, fetching=fetching, paused=paused),
        "model:facts": fragment("model_facts", row=version),
        "model:copies": fragment("model_copies", row=version, copies=copies_of(version), job=work),
        "model:files": fragment(
            "model_files",
            row=version,
            files=files[:MOST_FILES_SHOWN],
            hidden=max(0, len(files) - MOST_FILES_SHOWN),
            fetching=fetching,
        ),
        "model:servers": fragment("model_servers", servers=_servers(version)),
    }


def _servers(version: ModelVersion) -> list[dict[str, Any]]:
    """Servers that have (parts of) a version, with what they say of it.

    One that got it without the files that can run code has another digest, and the same name.
    """
    name = str(version)
    found = []
    live = Server.objects.filter(revoked_at__isnull=True, state__cache__isnull=False)
    for server in live.select_related("state").only("name", "state__cache").order_by("name"):
        for model in server.state.cache["models"]:
            if model["model_name"] == name or model["digest"] == version.digest:
                found.append({"server": server, "model": model})
    return found
