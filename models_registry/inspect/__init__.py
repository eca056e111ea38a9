"""What a model's own headers say about it: architecture, size, context, quantization."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec

from models_registry.errors import DamagedModel
from models_registry.inspect.facts import ModelFacts
from models_registry.inspect.gguf_facts import inspect_gguf
from models_registry.inspect.hf_facts import inspect_safetensors
from models_registry.inspect.scanner import scan_files
from models_registry.inspect.signatures import find_signatures
from models_registry.models import Format
from wire.manifest import Manifest

__all__ = ["ModelFacts", "inspect", "inspect_version"]
_MOST = 2**60  # no model comes near; a database keeps 2**63 - 1


def inspect_version(root: Path, manifest: Manifest) -> ModelFacts:
    """`inspect` of all files of a version below `root`, with the signatures and checksum lists that lie among them.

    Raises DamagedModel, BadSource (several models in one).
    """
    digests = {file.path: file.sha256 for file in manifest.files}
    facts = inspect(root, digests)
    scan = msgspec.structs.replace(facts.scan, signatures=find_signatures(root, digests))
    return replace(facts, scan=scan)


def inspect(root: Path, paths: Iterable[str]) -> ModelFacts:
    """Facts of the model made of the files `paths` (relative, with `/`) below `root`, and which of them can run code.

    GGUF files win over safetensors when a folder has both. Raises DamagedModel, BadSource (several models in one).
    """
    names = list(paths)
    facts = replace(_read(root, names), scan=scan_files(root, names))
    if max(facts.parameter_count or 0, facts.tensor_bytes) > _MOST:
        raise DamagedModel(f"{facts.entry or 'The model'} claims {facts.parameter_count} parameters.")
    return facts


def _read(root: Path, names: list[str]) -> ModelFacts:
    gguf = [name for name in names if name.lower().endswith(".gguf")]
    if gguf:
        return inspect_gguf(root, gguf)
    folders = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors")}
    if folders:
        folder = min(folders, key=lambda name: (name.count("/") + bool(name), name))
        own = [name for name in names if name.endswith(".safetensors") and name.rpartition("/")[0] == folder]
        return inspect_safetensors(root / folder, [name.rpartition("/")[2] for name in own])
    return ModelFacts(format=Format.OTHER.value)
