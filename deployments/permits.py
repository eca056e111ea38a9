"""Whether a version may be deployed: its licence accepted, and nothing loaded that can run code, unless allowed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from deployments.errors import LicenseNotAccepted, PickleRefused
from models_registry.catalog import waits_for_acceptance
from models_registry.inspect.scanner import Danger, Finding, Scan
from models_registry.models import ModelVersion

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
    for one in msgspec.convert(version.scan, Scan).files:
        if one.path in loaded and one.kind is not Danger.CODE:
            raise PickleRefused(f"{version} would be loaded from {one.path}, {_why(one)}")


def _why(one: Finding) -> str:
    if one.dangerous:
        return f"a pickle that can run code: it names {', '.join(one.dangerous[:5])}"
    return "a pickle, which can run code when it is loaded" if one.kind is Danger.PICKLE else f"an archive. {one.note}"
