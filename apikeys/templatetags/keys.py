"""Examples of a key's use, for templates."""

from __future__ import annotations

from django import template

from apikeys.models import ApiKey
from apikeys.snippets import Snippets, snippets

register = template.Library()


@register.simple_tag
def key_snippets(key: ApiKey, text: str = "", model: str = "") -> Snippets:
    """Examples with the key's whole `text`; without it, with $STOKEHOLD_KEY in its place."""
    return snippets(key, text, model=model)
