"""Cells of live lists: one template for the first page and for every later update."""

from __future__ import annotations

from typing import Any

from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.safestring import SafeString


def render_cell(kind: str, part: str, row: Any, **context: Any) -> str:
    """HTML inside the live slot `kind:pk:part`; the same template for the first page and for later updates."""
    return render_to_string(f"stokehold/cells/{kind}_{part}.html", {"row": row, **context}).strip()


def slot_of(kind: str, part: str, row: Any) -> str:
    return f"{kind}:{row.pk}:{part}"


def cell(kind: str, part: str, row: Any, **context: Any) -> SafeString:
    """A cell of a list that `live.js` keeps fresh."""
    html = SafeString(render_cell(kind, part, row, **context))  # from an autoescaped template
    return format_html('<div data-live="{}">{}</div>', slot_of(kind, part, row), html)
