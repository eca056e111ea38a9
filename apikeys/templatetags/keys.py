"""Examples of a key's use, for templates."""

from __future__ import annotations

from decimal import Decimal

from django import template

from apikeys.forms import public_names
from apikeys.models import ApiKey
from apikeys.money import from_nano
from apikeys.playground import is_playground_key
from apikeys.snippets import Snippets, snippets
from templates.words import UNKNOWN

register = template.Library()
register.filter("of_playground", is_playground_key)


@register.filter
def money(nano: int | None) -> str:
    """Nano-units as an amount: cents from one unit on, below it what is worth reading."""
    if nano is None:
        return ""
    amount = from_nano(nano)
    if not amount or amount >= 1:
        return f"{amount:,.2f}"
    return f"{amount:.2g}" if amount >= Decimal("0.0001") else "< 0.0001"


@register.filter
def ms(milliseconds: int | None) -> str:
    """`85 ms`, `1.2 s`; a dash when it is not known."""
    if milliseconds is None:
        return UNKNOWN
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


@register.simple_tag
def key_snippets(key: ApiKey, text: str = "", model: str = "") -> Snippets:
    """Examples with the key's whole `text`; without it, with $STOKEHOLD_KEY in its place."""
    if not (model or key.allowed_models):
        model = next(iter(public_names()), "")
    return snippets(key, text, model=model)
