"""Template filters over `templates.words`, and the small parts that pages are made of."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString

from templates import words

register = template.Library()
register.filter("bytes", words.in_bytes)
register.filter("short", words.in_short)
register.filter("tone", words.tone_of)


@register.filter
def since(moment: datetime | None) -> SafeString | str:
    """`3 min ago` with the exact moment as a tooltip. `live.js` keeps the words fresh."""
    if moment is None:
        return "never"
    exact = f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    text = words.since(moment, timezone.now())
    return format_html('<time datetime="{}" title="{}">{}</time>', moment.isoformat(), exact, text)


@register.filter
def unix(value: float | None) -> datetime | None:
    """Unix time as a moment; None for 0 and None."""
    return datetime.fromtimestamp(value, UTC) if value else None


@register.filter
def duration(seconds: float | None) -> str:
    return words.UNKNOWN if seconds is None else words.for_duration(seconds)


@register.filter
def percent_of(part: float | None, whole: float | None) -> int:
    return round(100 * part / whole) if part and whole else 0


@register.filter
def item(mapping: dict[str, Any] | None, key: str) -> Any:
    """`mapping[key]`, None when it is not there."""
    return (mapping or {}).get(key)


@register.inclusion_tag("stokehold/parts/badge.html")
def badge(state: str, label: str = "", title: str = "") -> dict[str, str]:
    """A state as a coloured dot and a word (never colour alone)."""
    return {"state": state, "label": label or state, "tone": words.tone_of(state), "title": title}


@register.inclusion_tag("stokehold/parts/bar.html")
def bar(label: str, percent: float | None, text: str = "") -> dict[str, Any]:
    """A load bar: label, share, and what it is in words."""
    known = percent is not None and not math.isnan(percent)
    share = min(max(percent, 0), 100) if known and percent is not None else 0
    tone = "bad" if share >= 92 else "warn" if share >= 80 else "good"
    return {"label": label, "share": round(share, 1), "known": known, "text": text or f"{share:.0f} %", "tone": tone}


@register.inclusion_tag("stokehold/parts/icon.html")
def icon(name: str) -> dict[str, str]:
    return {"name": name}


@register.filter
def gpu_label(device: dict[str, Any]) -> str:
    return f"GPU {device.get('index', 0)}"


@register.filter
def mean_time(total: Any) -> str:
    """Mean duration of the requests of a usage row."""
    if not total.requests:
        return words.UNKNOWN
    seconds = total.duration_ms / total.requests / 1000
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


@register.filter
def ticks(text: Any) -> SafeString:
    """`name` within backticks as code; the rest escaped."""
    parts = conditional_escape(str(text)).split("`")
    marked = (f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
    return SafeString("".join(marked) if len(parts) % 2 else "`".join(parts))
