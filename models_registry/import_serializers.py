"""What the REST API takes of sources and of imports under way."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from models_registry.fetching.policy import limit_at
from models_registry.fetching.services import MOST_PRIORITY

SOURCES = ("path", "file", "repo", "urls", "s3", "modelscope")
"""Of an import: one of them is given."""

_URL_ENTRY = {
    "type": "object",
    "required": ["url"],
    "properties": {"url": {"type": "string"}, "path": {"type": "string"}, "sha256": {"type": "string"}},
}
_URL_LIST = {"type": "array", "items": {"oneOf": [{"type": "string"}, _URL_ENTRY]}}


@extend_schema_field({"oneOf": [{"type": "string"}, _URL_LIST]})
class UrlsField(serializers.Field):
    """A list of URLs, in JSON or in lines; `urls.parse` reads it."""

    default_error_messages = {"invalid": "Give URLs: one a line, or a list of texts and objects."}

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str | list) or not data:
            self.fail("invalid")
        if isinstance(data, list) and not all(isinstance(one, str | dict) for one in data):
            self.fail("invalid")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class S3SourceSerializer(serializers.Serializer):
    """A bucket of S3, or of what speaks like it. Keys are sealed, and never shown again."""

    address = serializers.CharField(max_length=1200, help_text="s3://bucket/prefix, or one object.")
    endpoint = serializers.CharField(
        max_length=300, required=False, help_text="As in https://minio.example.org:9000; default: AWS."
    )
    region = serializers.CharField(max_length=40, required=False, help_text="Default: us-east-1.")
    access_key = serializers.CharField(max_length=200, required=False, help_text="Without keys: asked as nobody.")
    secret_key = serializers.CharField(max_length=400, required=False, write_only=True)
    session_token = serializers.CharField(max_length=4000, required=False, write_only=True)


class PrioritySerializer(serializers.Serializer):
    """Which imports come first."""

    priority = serializers.IntegerField(
        min_value=-MOST_PRIORITY,
        max_value=MOST_PRIORITY,
        help_text="Higher ones are taken up first, and have most of the line. 0 is usual.",
    )


class DownloadPolicySerializer(serializers.Serializer):
    """How fast all fetches together may be."""

    schedule = serializers.CharField(
        max_length=500,
        allow_blank=True,
        help_text="As in: mon-fri 08:00-18:00 20 MB/s, 22:00-06:00 unlimited, else 50 MB/s. Empty: as fast as it goes.",
    )
    zone = serializers.CharField(max_length=80, default="UTC", help_text="Time zone, such as Europe/Berlin.")
    bytes_per_second = serializers.SerializerMethodField(help_text="What holds now; null: no limit.")

    def get_bytes_per_second(self, row: Any) -> float | None:
        return limit_at(timezone.now())
