"""A version in one line: `8.0 B, Q4_K_M, 128 k context, 4.9 GB; fits on 2 of 5 servers`.

How many servers it fits on is known above this app: who knows it says so with `tell_fits_with`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from models_registry.models import ModelVersion, VersionState

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Fit:
    """Servers on which an instance with default settings would have room now, of all there are."""

    servers: tuple[str, ...]
    total: int
    runnable: bool = True
    """Whether there is an engine for it."""

    def __str__(self) -> str:
        if not self.runnable:
            return "no engine here runs it"
        if not self.total:
            return "no server yet"
        return f"fits on {len(self.servers)} of {self.total} server{'' if self.total == 1 else 's'}"


FitsOf = Callable[[Sequence[ModelVersion], dt.datetime], Mapping[int, Fit]]


def _unknown(versions: Sequence[ModelVersion], now: dt.datetime) -> Mapping[int, Fit]:
    return {}


_fits_of: FitsOf = _unknown


def tell_fits_with(fits_of: FitsOf) -> None:
    """Called once, at start, by the app that knows servers and engines."""
    global _fits_of
    _fits_of = fits_of


def fits(versions: Iterable[ModelVersion], now: dt.datetime) -> Mapping[int, Fit]:
    """By primary key, of those that are READY; a constant number of queries."""
    return _fits_of([one for one in versions if one.state == VersionState.READY], now)


def in_words(version: ModelVersion, fit: Fit | None = None) -> str:
    """Empty while it is not READY."""
    if version.state != VersionState.READY:
        return ""
    parts = [_parameters(version), version.quantization, _context(version), f"{version.size_bytes / 1e9:.1f} GB"]
    if version.size_bytes < 1e8:
        parts[-1] = f"{version.size_bytes / 1e6:.1f} MB"
    if version.modality not in ("", "text"):
        parts.append(version.modality.replace(" ", " + "))
    line = ", ".join(part for part in parts if part)
    return f"{line}; {fit}" if fit is not None else line


def sentences(versions: Sequence[ModelVersion], now: dt.datetime) -> dict[int, str]:
    """`in_words` of each, by primary key."""
    found = fits(versions, now)
    return {one.pk: in_words(one, found.get(one.pk)) for one in versions}


def _parameters(version: ModelVersion) -> str:
    text = _short(version.parameter_count)
    active = _short(version.active_parameter_count)
    return f"{text} ({active} active)" if active else text


def _short(count: int | None) -> str:
    if not count:
        return ""
    size, unit = next(((size, unit) for size, unit in _UNITS if count >= size), (1, ""))
    number = count / size
    return f"{number:.0f} {unit}".strip() if number >= 100 else f"{number:.1f} {unit}".strip()


def _context(version: ModelVersion) -> str:
    tokens = version.context_tokens
    if not tokens:
        return ""
    return f"{tokens / 1024:.0f} k context" if tokens >= 1024 else f"{tokens} tokens of context"
