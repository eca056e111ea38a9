"""Tags of models and versions: small words, kept in one text with spaces around each so that one can be looked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from django.db.models import Q, QuerySet

from models_registry.errors import InvalidTag

MOST = 20
_TAG = re.compile(r"[a-z0-9][a-z0-9._:-]{0,39}")


def packed(tags: Iterable[str]) -> str:
    """As a row keeps them: lower case, sorted, each once. Raises InvalidTag."""
    found = sorted({tag.strip().lower() for tag in tags if tag.strip()})
    if wrong := [tag for tag in found if not _TAG.fullmatch(tag)]:
        raise InvalidTag(f"{wrong[0][:60]!r} is not a tag.")
    if len(found) > MOST:
        raise InvalidTag(f"{len(found)} tags are too many.")
    return f" {' '.join(found)} " if found else ""


def unpacked(text: str) -> list[str]:
    return text.split()


def models_tagged(models: QuerySet[Any], tag: str) -> QuerySet[Any]:
    return models.filter(tags__contains=f" {tag.strip().lower()} ")


def versions_tagged(versions: QuerySet[Any], tag: str) -> QuerySet[Any]:
    """Those with this tag, and those of a model with it."""
    text = f" {tag.strip().lower()} "
    return versions.filter(Q(tags__contains=text) | Q(model__tags__contains=text))
