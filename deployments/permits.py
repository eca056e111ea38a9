"""Whether a version may be deployed: its licence accepted, and nothing loaded that can run code, unless allowed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from deployments.errors import LicenseNotAccepted, PickleRefused
from models_registry.catalog import waits_for_acceptance
from models_registry.inspect.scanner import Danger, Finding, Scan
from models_registry.models import ModelVersion
from wire.manifest import Manifest

_PICKLE_NAMES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_permits(version: ModelVersion, weights: Iterable[str]) -> None:
    """`weights`: paths that the engine will load. Raises LicenseNotAccepted, PickleRefused."""
    if waits_for_acceptance(version):
        raise LicenseNotAccepted(f"the licence of {version} ({version.license or 'gated'}) was not accepted yet")
    if version.pickle_allowed_at is not None:
        return
    if version.scan is None:
        if unknown := sorted(path for path in weights if path.lower().endswith(_PICKLE_NAMES)):
            raise PickleRefused(
                f"{version} was not looked through yet, and {unknown[0]} may run code when it is loaded",
                remedy="Run `./stokehold inspect_models`, then try again.",
            )
        return
    loaded = set(weights)
    for one in _dangerous(version):
        if one.path in loaded:
            raise PickleRefused(f"{version} would be loaded from {one.path}, {_why(one)}")


def manifest_for(version: ModelVersion, weights: Iterable[str]) -> Manifest:
    """What a server gets of a version: all of it, but for files that can run code and are not among `weights`."""
    manifest = msgspec.convert(version.manifest, Manifest)
    left_out = {one.path for one in _dangerous(version)} - set(weights)
    if not left_out:
        return manifest
    return Manifest(files=tuple(file for file in manifest.files if file.path not in left_out))


def _dangerous(version: ModelVersion) -> list[Finding]:
    """Not the Python files: these run only where an engine is told to trust the model, and are read then."""
    if not version.scan:
        return []
    return [one for one in msgspec.convert(version.scan, Scan).files if one.kind is not Danger.CODE]


def _why(one: Finding) -> str:
    if one.dangerous:
        return f"a pickle that can run code: it names {', '.join(one.dangerous[:5])}"
    return "a pickle, which can run code when it is loaded" if one.kind is Danger.PICKLE else f"an archive. {one.note}"
