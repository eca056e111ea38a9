"""What differs between two versions: files, facts, configuration, chat template."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from models_registry.errors import NotReady, RegistryError
from models_registry.inspect.gguf import TEMPLATE, Skipped, read_header
from models_registry.inspect.hf_facts import chat_template
from models_registry.locations.find import version_folder
from models_registry.models import Format, ModelVersion, VersionState

_FACTS = (
    *("format", "architecture", "parameter_count", "active_parameter_count", "context_tokens", "quantization"),
    *("modality", "layers", "hidden_size", "heads", "kv_heads", "head_dim", "size_bytes", "license"),
)
_MORE = ("vocabulary", "experts", "experts_used", "tools", "rope_scaling", "rope_factor", "adapter", "base_model")
_MAX_CONFIG_BYTES = 4 << 20
_MAX_DEPTH = 8
_MAX_DIFFERENCES = 500
_MAX_VALUE = 200
_MAX_TEMPLATE = 64 << 10
_MAX_LINES = 2000


class Change(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    SAME = "same"


@dataclass(frozen=True)
class FileDifference:
    """Sizes in bytes; None: it is not in that version."""

    path: str
    change: Change
    before_bytes: int | None
    after_bytes: int | None


@dataclass(frozen=True)
class Difference:
    """A value that differs, as text; empty: it is not there."""

    key: str
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """`config`: of config.json, or of a GGUF's own values. `template`: lines of a unified diff; empty: the same."""

    files: tuple[FileDifference, ...]
    facts: tuple[Difference, ...]
    config: tuple[Difference, ...]
    template: tuple[str, ...]


def compare(before: ModelVersion, after: ModelVersion) -> Comparison:
    """From one READY version to another. Raises NotReady."""
    for version in (before, after):
        if version.state != VersionState.READY:
            raise NotReady(f"{version} is not ready ({version.get_state_display()}).")
    (config, template), (other_config, other_template) = _inside(before), _inside(after)
    return Comparison(
        files=_files(before, after),
        facts=_differences(_facts(before), _facts(after)),
        config=_differences(config, other_config),
        template=_template(template, other_template, str(before), str(after)),
    )


def _files(before: ModelVersion, after: ModelVersion) -> tuple[FileDifference, ...]:
    old, new = ({file["path"]: file for file in one.manifest.get("files", ())} for one in (before, after))
    found = []
    for path in sorted({*old, *new}):
        mine, other = old.get(path), new.get(path)
        if mine and other:
            change = Change.SAME if mine["sha256"] == other["sha256"] else Change.CHANGED
        else:
            change = Change.REMOVED if mine else Change.ADDED
        sizes = (one["size_bytes"] if one else None for one in (mine, other))
        found.append(FileDifference(path, change, *sizes))
    return tuple(found)


def _facts(version: ModelVersion) -> dict[str, Any]:
    found = {name: getattr(version, name) for name in _FACTS}
    return found | {name: version.metadata.get(name) for name in _MORE}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    found = []
    for key in sorted({*before, *after}):
        mine, other = before.get(key), after.get(key)
        if mine != other:
            found.append(Difference(key, _told(mine), _told(other)))
    return tuple(found[:_MAX_DIFFERENCES])


def _told(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_counted)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}…"


def _counted(value: Any) -> str:
    """A list or text of a GGUF that is too long to be kept is known by its length only."""
    return f"{value.count} long" if isinstance(value, Skipped) else str(value)


def _inside(version: ModelVersion) -> tuple[dict[str, Any], str]:
    """Configuration and chat template, from the store; nothing of what is missing or damaged there."""
    try:
        folder = version_folder(version)
        if version.format == Format.GGUF and version.metadata.get("entry"):
            values = dict(read_header(folder / version.metadata["entry"]).values)
            template = values.pop(TEMPLATE, "")
            return values, template if isinstance(template, str) else ""
        return _flat(_config(folder)), chat_template(folder)
    except (RegistryError, OSError):
        return {}, ""


def _config(folder: Path) -> Any:
    path = folder / "config.json"
    if not path.exists() or path.stat().st_size > _MAX_CONFIG_BYTES:
        return {}
    try:
        return msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, ValueError, RecursionError):
        return {}


def _flat(value: Any, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    if not isinstance(value, dict) or depth >= _MAX_DEPTH:
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key), depth + 1))
    return found


def _template(before: str, after: str, old: str, new: str) -> tuple[str, ...]:
    if before == after:
        return ()
    lines = [text.splitlines() for text in (before, after)]
    if max(len(before), len(after)) > _MAX_TEMPLATE or max(map(len, lines)) > _MAX_LINES:
        return ("The chat templates differ, and are too long to be compared.",)
    return tuple(difflib.unified_diff(*lines, old, new, lineterm=""))
