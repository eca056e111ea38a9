"""What the REST API takes of sources and of imports under way."""

from __future__ import annotations

from rest_framework import serializers

from models_registry.fetching.services import MOST_PRIORITY


class PrioritySerializer(serializers.Serializer):
    """Which imports come first."""

    priority = serializers.IntegerField(
        min_value=-MOST_PRIORITY,
        max_value=MOST_PRIORITY,
        help_text="Higher ones are taken up first, and have most of the line. 0 is usual.",
    )
