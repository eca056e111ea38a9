"""Examples of a key's use, for templates."""

from __future__ import annotations

from django import template

from apikeys.forms import public_names
from apikeys.models import ApiKey
from apikeys.playground import is_playground_key
from apikeys.snippets import Snippets, snippets

register = template.Library()
register.filter("of_playground", is_playground_key)


@register.simple_tag
def key_snippets(key: ApiKey, text: str = "", model: str = "") -> Snippets:
    """Examples with the key's whole `text`; without it, with $STOKEHOLD_KEY in its place."""
    if not (model or key.allowed_models):
        model = next(iter(public_names()), "")
    return snippets(key, text, model=model)
