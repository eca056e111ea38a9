"""Which files of a repository make a model: one format, one quantization, and the small files beside them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

_BESIDE = (
    *("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.yaml", "*.yml", "*.md", "*.vocab", "*.bpe"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
)
"""Configuration, tokenizers, licences."""
_SIGNED = re.compile(r"(?:.*/)?(?:model\.sig|sha256sums?(?:\.txt)?(?:\.asc|\.sig)?)", re.IGNORECASE)
"""Signatures and checksum lists of many files; for such of one file see `_SIGNED_FILE`."""
_SIGNED_FILE = re.compile(r"(.+)\.(?:sig|sigstore|sha256|asc|minisig|p7s)")
_NEVER = ("original/*", "onnx/*", "openvino/*", "coreml/*", "runs/*", ".git*", "*/.git*", "metal/*")
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "IQ4_XS", "Q6_K", "Q8_0", "Q3_K_M", "BF16", "F16")
"""Quantizations of GGUF, the first that is there is taken: small, and hardly worse than the whole."""
_QUANTIZATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|MXFP4(?:_MOE)?|TQ\d_\d|BF16|F16|F32|FP16))(?=[-._/]|$)",
    re.IGNORECASE,
)
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")


@dataclass(frozen=True)
class Choice:
    """Paths to take, and why these, for people."""

    paths: tuple[str, ...]
    reason: str


def chosen(paths: Sequence[str], patterns: Sequence[str] = ()) -> Choice:
    """Those that match any of `patterns` (as in a shell; `*` crosses folders); without patterns the sensible ones."""
    if patterns:
        found = tuple(path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns))
        return Choice(found, "those that match")
    open_paths = [path for path in paths if not any(fnmatchcase(path, pattern) for pattern in _NEVER)]
    beside = [path for path in open_paths if any(fnmatchcase(path.rpartition("/")[2], one) for one in _BESIDE)]
    weights, reason = _weights(open_paths)
    if reason.startswith("GGUF"):
        beside = [path for path in beside if not path.endswith(".index.json")]
    taken = {*weights, *beside}
    taken |= {path for path in open_paths if _signs(path, taken)}
    return Choice(tuple(path for path in paths if path in taken), reason)


def variants(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Files of each quantization of a GGUF repository, all parts together; what helps any of them is left out."""
    found: dict[str, list[str]] = {}
    for path in paths:
        if path.lower().endswith(".gguf") and not _helps(path):
            found.setdefault(_quantization(path), []).append(path)
    return {name: tuple(sorted(files)) for name, files in sorted(found.items())}


def _signs(path: str, taken: Set[str]) -> bool:
    """Whether it is a signature, or a list of checksums, of files that are taken."""
    one = _SIGNED_FILE.fullmatch(path)
    return _SIGNED.fullmatch(path) is not None or (one is not None and one[1] in taken)


def alternatives(paths: Iterable[str]) -> tuple[str, ...]:
    """Quantizations of one and the same model among GGUF files `paths`, where there are several: one too many."""
    found: dict[str, set[str]] = {}
    for path in paths:
        name = _quantization(path)
        if path.lower().endswith(".gguf") and not _helps(path) and _QUANTIZATION.search(name):
            found.setdefault(path.upper().replace(name, ""), set()).add(name)
    return next((tuple(sorted(names)) for names in found.values() if len(names) > 1), ())


def _weights(paths: Sequence[str]) -> tuple[list[str], str]:
    safetensors = [path for path in paths if path.endswith(".safetensors")]
    if safetensors:
        plain = [path for path in safetensors if not path.rpartition("/")[2].startswith("consolidated")]
        top = [path for path in plain if "/" not in path]
        return top or plain or safetensors, "safetensors, of all formats the safest to load"
    by_name = variants(paths)
    if by_name:
        name = next((one for one in _PREFERRED if one in by_name), min(by_name))
        helpers = sorted(path for path in paths if path.lower().endswith(".gguf") and _helps(path))
        more = [next((path for path in helpers if "f16" in path.lower()), helpers[0])] if helpers else []
        others = f", one of {len(by_name)} quantizations" if len(by_name) > 1 else ""
        return [*by_name[name], *more], f"GGUF {name}{others}"
    pickled = [path for path in paths if path.endswith((".bin", ".pt", ".pth"))]
    return pickled, "pickle files: they can run code when they are loaded" if pickled else "no weights were found"


def _helps(path: str) -> bool:
    """A projector for images, or an importance matrix: no model by itself."""
    return path.rpartition("/")[2].lower().startswith(("mmproj", "imatrix"))


def _quantization(path: str) -> str:
    name = _PART.sub("", path)
    found = _QUANTIZATION.findall(name.removesuffix(".gguf"))
    return found[-1].upper() if found else name.rpartition("/")[2]
