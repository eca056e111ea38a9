"""`{% live topic %}`: the first rendering of a live page, by the very code that renders it later."""

from __future__ import annotations

from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from monitoring.live import topics

register = template.Library()


@register.simple_tag(takes_context=True)
def live_fragments(context: dict[str, Any], text: str) -> dict[str, str]:
    """Fragments of a topic for this page: `{% live_fragments "server:srv-1" as live %}`."""
    found = topics.find(text)
    user = context["request"].user
    if found is None or not topics.may_see(user, found[0]):
        return {}
    topic, argument = found
    return topic.render(topics.Ask(user, argument, frozenset(), timezone.now()))


@register.simple_tag
def slot(fragments: dict[str, str], name: str, tag: str = "div") -> SafeString:
    """The element that `live.js` swaps when the fragment `name` changes."""
    html = SafeString(fragments.get(name, ""))  # from autoescaped templates
    return format_html('<{} data-live="{}">{}</{}>', SafeString(tag), name, html, SafeString(tag))
