"""Models and versions as the REST API shows and takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rest_framework import serializers

from models_registry.models import NAME, Model, ModelVersion


class ModelSerializer(serializers.ModelSerializer):
    """A model, with how many versions it has."""

    version_count = serializers.IntegerField(read_only=True)

    class Meta:
        model = Model
        fields = ["id", "name", "description", "version_count", "created_at"]
        read_only_fields = ["created_at"]

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        if self.instance is not None:  # the name is in every manifest's label by now
            fields["name"].read_only = True
        return fields


class ModelVersionSerializer(serializers.ModelSerializer):
    """A version without its files."""

    model = serializers.CharField(source="model.name", read_only=True)

    class Meta:
        model = ModelVersion
        exclude = ["manifest"]


class ManifestFileSerializer(serializers.Serializer):
    path = serializers.CharField()
    size_bytes = serializers.IntegerField()
    sha256 = serializers.CharField()


class ModelVersionDetailSerializer(ModelVersionSerializer):
    """A version with its files."""

    files = ManifestFileSerializer(source="manifest.files", many=True, read_only=True, default=())


class ImportSerializer(serializers.Serializer):
    """What to import: a path on the master's machine, or one uploaded file."""

    model = serializers.CharField(max_length=120, validators=[NAME], help_text="Name of the model; made when new.")
    version = serializers.CharField(max_length=40, required=False, help_text="Default: the next free number.")
    path = serializers.CharField(required=False, help_text="A file or folder on the master's machine.")
    file = serializers.FileField(required=False, help_text="One file, in multipart form data, in place of `path`.")
    link = serializers.BooleanField(default=False, help_text="Hard-link instead of copying, where possible.")

    def validate_path(self, value: str) -> Path:
        if "\0" in value or not value.startswith("/"):
            raise serializers.ValidationError("Give an absolute path.")
        return Path(value)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("path" in attrs) == ("file" in attrs):
            raise serializers.ValidationError("Give either `path` or `file`.")
        return attrs
