"""Locations, copies and the work on them as the REST API shows and takes them."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from models_registry.location_models import StorageJob, StorageLocation, VersionCopy


class LocationSerializer(serializers.ModelSerializer):
    """A place where models are kept. Sizes in bytes."""

    path = serializers.CharField(max_length=1000, source="root", help_text="A folder on the master's machine.")
    version_count = serializers.IntegerField(read_only=True, help_text="Versions that lie in it.")

    class Meta:
        model = StorageLocation
        fields = [
            "id",
            "name",
            "kind",
            "path",
            "server_path",
            "quota_bytes",
            "read_only",
            "is_default",
            "builtin",
            "reachable",
            "error",
            "free_bytes",
            "total_bytes",
            "used_bytes",
            "version_count",
            "looked_at",
            "created_at",
        ]
        read_only_fields = [
            "builtin",
            "reachable",
            "error",
            "free_bytes",
            "total_bytes",
            "used_bytes",
            "looked_at",
            "created_at",
        ]
        extra_kwargs = {  # what is taken or wrong is the service's to refuse
            "name": {"validators": []},
            "is_default": {"validators": []},
        }

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        if self.instance is not None:  # its files lie as its kind has them
            fields["kind"].read_only = True
        return fields

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        found = super().to_internal_value(data)
        if "root" in found:
            found["path"] = found.pop("root")
        return found


class CopySerializer(serializers.ModelSerializer):
    """A version as it lies in one location."""

    location = serializers.CharField(source="location.name")
    path = serializers.CharField(help_text="The folder with its files, on the master's machine.")
    bad = serializers.ListField(help_text="Files that are not as they should be: path, sha256, problem.")

    class Meta:
        model = VersionCopy
        fields = ["id", "location", "state", "in_place", "path", "bad", "problem", "verified_at", "created_at"]
        read_only_fields = fields


class TargetSerializer(serializers.Serializer):
    """Where to."""

    location = serializers.SlugRelatedField(
        slug_field="name", queryset=StorageLocation.objects.all(), help_text="Name of a storage location."
    )


class JobSerializer(serializers.ModelSerializer):
    """Work on a copy. `location`: where to, or of what; `source`: where from, of a move."""

    version = serializers.IntegerField(source="version_id")
    model = serializers.CharField(source="version")
    location = serializers.CharField(source="location.name")
    source = serializers.CharField(source="source.name", default=None, allow_null=True)

    class Meta:
        model = StorageJob
        fields = [
            "id",
            "kind",
            "version",
            "model",
            "location",
            "source",
            "state",
            "error",
            "done_bytes",
            "total_bytes",
            "queued_at",
            "started_at",
            "ended_at",
        ]
        read_only_fields = fields
