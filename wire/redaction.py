"""Patterns by which texts are redacted: RE2's, so that no pattern and no text can take longer than linear time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import re2

REPLACEMENT = "[redacted]"
MOST_PATTERNS, LONGEST_PATTERN = 50, 500
_OVERLAP = 4096
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


class BadPattern(ValueError):
    """Not a pattern of RE2 (no look-around, no back-references)."""


class Redaction:
    """Replaces what matches any of the patterns. Raises BadPattern."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._compiled = [_compiled(pattern) for pattern in patterns]

    def text(self, text: str) -> str:
        for pattern in self._compiled:
            text = pattern.sub(REPLACEMENT, text)
        return text

    def value(self, value: Any, longest: int) -> Any:
        """JSON data with all its texts redacted (names of fields are not), each cut after `longest` characters."""
        if isinstance(value, str):
            if len(value) <= longest:
                return self.text(value)
            kept = self.text(value[: longest + _OVERLAP])[:longest]  # a match across the cut must be seen
            return f"{kept}… ({len(value) - longest} more characters)"
        if isinstance(value, list):
            return [self.value(item, longest) for item in value]
        if isinstance(value, dict):
            return {name: self.value(item, longest) for name, item in value.items()}
        return value


def _compiled(pattern: str) -> Any:
    if not pattern or len(pattern) > LONGEST_PATTERN:
        raise BadPattern(f"a pattern has 1 to {LONGEST_PATTERN} characters")
    try:
        compiled = re2.compile(pattern, _OPTIONS)
    except re2.error as error:
        text = error.args[0] if error.args else error
        raise BadPattern(text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)) from error
    if compiled.match(""):
        raise BadPattern(f"{pattern} matches an empty text")
    return compiled
