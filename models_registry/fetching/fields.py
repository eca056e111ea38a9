"""Fields of forms that say how something is fetched."""

from __future__ import annotations

from typing import Any

from django import forms

from models_registry.fetching.schedule import MOST_BYTES_PER_SECOND


class LimitField(forms.FloatField):
    """MB/s as people write them; cleaned, whole bytes a second. None: as fast as it goes."""

    def __init__(self) -> None:
        super().__init__(
            required=False,
            min_value=0.01,
            max_value=MOST_BYTES_PER_SECOND / 1e6,
            label="Not faster than (MB/s)",
            help_text="Empty: as fast as it goes.",
        )

    def clean(self, value: Any) -> int | None:
        limit = super().clean(value)
        return int(limit * 1e6) if limit else None
