"""What the fragments of all topics share."""

from __future__ import annotations

import hashlib
from typing import Any

from django.db.models import Count, Max, QuerySet
from django.template.loader import render_to_string

from templates.cells import render_cell, slot_of

LIST_SLOT = "list:digest"


def fragment(template: str, **context: Any) -> str:
    return render_to_string(f"stokehold/live/{template}.html", context).strip()


def cells(kind: str, parts: tuple[str, ...], row: Any, **context: Any) -> dict[str, str]:
    """The live cells of one row of a list."""
    return {slot_of(kind, part, row): render_cell(kind, part, row, **context) for part in parts}


def list_digest(rows: QuerySet, newest: str = "created_at") -> dict[str, str]:
    """Changes when rows come or go: the page then reads its list again."""
    found = rows.order_by().aggregate(count=Count("pk"), newest=Max(newest))
    text = f"{found['count']} {found['newest']}"
    return {LIST_SLOT: hashlib.sha256(text.encode()).hexdigest()[:16]}
