"""What people say of versions: notes, tags, that a licence is accepted, that files which can run code are allowed."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

import structlog
from django.conf import settings

from models_registry import tags as tagging
from models_registry.errors import LocationUnreachable, NothingToAllow
from models_registry.hub.client import origin_of
from models_registry.inspect import inspect_version
from models_registry.locations.copies import manifest_of
from models_registry.locations.find import version_folder
from models_registry.models import Model, ModelVersion
from models_registry.versions import describe_facts

log = structlog.get_logger(__name__)

_LICENSE_FILE = re.compile(r"(?:licen[cs]e|use_policy|notice|copying)(?:[._-].*)?", re.IGNORECASE)
_MOST_TEXTS, _MOST_TEXT_BYTES = 5, 100_000


def annotate(row: Model | ModelVersion, *, notes: str | None = None, tags: Iterable[str] | None = None) -> None:
    """Set the notes, the tags, or both. Raises InvalidTag."""
    if notes is not None:
        row.notes = notes.strip()
    if tags is not None:
        row.tags = tagging.packed(tags)
    row.save(update_fields=["notes", "tags"])


def needs_acceptance(version: ModelVersion) -> bool:
    """Whether somebody has to accept its licence before it is deployed: its source asks for it, or this installation
    does (`LICENSES_TO_ACCEPT`, patterns as in a shell)."""
    license_name = version.license.lower()
    return version.gated or (
        bool(license_name) and any(fnmatchcase(license_name, one.lower()) for one in settings.LICENSES_TO_ACCEPT)
    )


def license_texts(version: ModelVersion) -> list[tuple[str, str]]:
    """(path, text) of the licence files among a READY version's own, the start of each; none when out of reach."""
    found = []
    with suppress(LocationUnreachable):
        folder = version_folder(version)
        paths = (file["path"] for file in version.manifest["files"])
        for path in sorted(path for path in paths if _LICENSE_FILE.fullmatch(path.rpartition("/")[2]))[:_MOST_TEXTS]:
            with suppress(OSError), (folder / path).open("rb") as file:
                text = file.read(_MOST_TEXT_BYTES).decode(errors="replace").replace("\0", "")
                found.append((path, text))
    return found


def source_page(version: ModelVersion) -> str:
    """Where people read about it at its source; empty: nowhere that is known."""
    origin = origin_of(version.source)
    return f"{settings.HUB_ENDPOINT}/{origin[0]}/tree/{origin[1]}" if origin else ""


def waits_for_acceptance(version: ModelVersion) -> bool:
    return version.license_accepted_at is None and needs_acceptance(version)


def accept_license(version: ModelVersion, *, by: str, now: dt.datetime) -> None:
    """Note who accepted it; the first one stays. Raises NothingToAllow."""
    if not needs_acceptance(version):
        raise NothingToAllow(f"The licence of {version} needs no acceptance.")
    if version.license_accepted_at is None:
        version.license_accepted_by, version.license_accepted_at = by[:150], now
        version.save(update_fields=["license_accepted_by", "license_accepted_at"])
        log.info("model.license_accepted", model=str(version), license=version.license, by=by)


def allow_pickle(version: ModelVersion, *, by: str, now: dt.datetime) -> None:
    """Let engines load the files of it that can run code. Raises NothingToAllow."""
    if not version.flagged:
        raise NothingToAllow(f"{version} holds no file that can run code by being loaded.")
    if version.pickle_allowed_at is None:
        version.pickle_allowed_by, version.pickle_allowed_at = by[:150], now
        version.save(update_fields=["pickle_allowed_by", "pickle_allowed_at"])
        log.warning("model.pickle_allowed", model=str(version), by=by)


def forbid_pickle(version: ModelVersion, *, by: str) -> None:
    """Take it back, for deployments to come; what runs goes on."""
    if version.pickle_allowed_at is not None:
        version.pickle_allowed_by, version.pickle_allowed_at = "", None
        version.save(update_fields=["pickle_allowed_by", "pickle_allowed_at"])
        log.warning("model.pickle_forbidden", model=str(version), by=by)


def reinspect(version: ModelVersion) -> None:
    """Read the headers and look through the files of a READY version again: a newer release may see more.

    Raises NotReady, DamagedModel, LocationUnreachable (the row stays as it is).
    """
    manifest = manifest_of(version)
    describe_facts(version, inspect_version(version_folder(version), manifest))
    fields = ("format", "architecture", "quantization", "modality", "license", "scan", "flagged", "metadata")
    numbers = ("parameter_count", "active_parameter_count", "context_tokens", "layers", "hidden_size")
    version.save(update_fields=[*fields, *numbers, "heads", "kv_heads", "head_dim"])
    log.info("model.inspected", model=str(version))


def files_of(version: ModelVersion) -> list[dict[str, Any]]:
    """Files of a version: path, size, sha256, and `flags`: what of them can run code."""
    flags = {one["path"]: [one["kind"]] for one in (version.scan or {}).get("files", ())}
    return [{**file, "flags": flags.get(file["path"], [])} for file in version.manifest.get("files", ())]


def signatures_of(version: ModelVersion) -> list[dict[str, Any]] | None:
    """Signatures and checksum lists among its files; None: they were not looked for yet."""
    return (version.scan or {}).get("signatures")
