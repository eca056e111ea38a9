"""Models and versions as the REST API shows and takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from models_registry.hub.imports import Detail
from models_registry.location_models import StorageLocation
from models_registry.models import NAME, HubToken, Model, ModelVersion, VersionState


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


class ImportDetailSerializer(serializers.Serializer):
    """How far a fetch is. Rates in bytes a second, times in seconds."""

    paused = serializers.BooleanField()
    limit_bytes_per_second = serializers.IntegerField(allow_null=True)
    done_bytes = serializers.IntegerField()
    total_bytes = serializers.IntegerField()
    bytes_per_second = serializers.FloatField()
    eta_s = serializers.FloatField(allow_null=True)
    files = serializers.ListField(help_text="Of those under way: path, bytes there, bytes in all.")


class ModelVersionSerializer(serializers.ModelSerializer):
    """A version without its files."""

    model = serializers.CharField(source="model.name", read_only=True)
    fetching = serializers.SerializerMethodField(help_text="Of an import from a Hub that is under way.")

    class Meta:
        model = ModelVersion
        exclude = ["manifest"]

    @extend_schema_field(ImportDetailSerializer(allow_null=True))
    def get_fetching(self, row: ModelVersion) -> dict[str, Any] | None:
        job = getattr(row, "job", None) if row.state == VersionState.IMPORTING else None
        if job is None or job.hub is None:
            return None
        said = {"paused": job.paused, "limit_bytes_per_second": job.limit_bytes_per_second}
        return {**msgspec.to_builtins(msgspec.convert(job.detail, Detail)), **said}


class ManifestFileSerializer(serializers.Serializer):
    path = serializers.CharField()
    size_bytes = serializers.IntegerField()
    sha256 = serializers.CharField()


class ModelVersionDetailSerializer(ModelVersionSerializer):
    """A version with its files."""

    files = ManifestFileSerializer(source="manifest.files", many=True, read_only=True, default=())


class ImportSerializer(serializers.Serializer):
    """What to import: a path on the master's machine, or one uploaded file."""

    model = serializers.CharField(
        max_length=120,
        required=False,
        validators=[NAME],
        help_text="Name of the model; made when new. With `repo` it may be left out: the repository's.",
    )
    version = serializers.CharField(max_length=40, required=False, help_text="Default: the next free number.")
    path = serializers.CharField(required=False, help_text="A file or folder on the master's machine.")
    file = serializers.FileField(required=False, help_text="One file, in multipart form data, in place of `path`.")
    link = serializers.BooleanField(default=False, help_text="Hard-link instead of copying, where possible.")
    location = serializers.SlugRelatedField(
        slug_field="name",
        queryset=StorageLocation.objects.all(),
        required=False,
        help_text="Name of the storage location it goes to; default: the default one.",
    )
    in_place = serializers.BooleanField(
        default=False, help_text="Leave the files at `path` where they are: on the shared storage of `location`."
    )
    repo = serializers.CharField(max_length=200, required=False, help_text="Of the Hub, in place of `path`: org/name.")
    revision = serializers.CharField(max_length=200, default="main", help_text="Branch, tag or commit of `repo`.")
    patterns = serializers.ListField(
        child=serializers.CharField(max_length=200),
        default=list,
        max_length=100,
        help_text="Files of `repo` to take, such as *Q4_K_M.gguf; default: the sensible ones.",
    )
    token = serializers.SlugRelatedField(
        slug_field="name", queryset=HubToken.objects.all(), required=False, help_text="Name of a Hub token."
    )
    limit_bytes_per_second = serializers.IntegerField(required=False, allow_null=True, min_value=1)

    def validate_path(self, value: str) -> Path:
        if "\0" in value or not value.startswith("/"):
            raise serializers.ValidationError("Give an absolute path.")
        return Path(value)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if sum(name in attrs for name in ("path", "file", "repo")) != 1:
            raise serializers.ValidationError("Give either `path`, `file` or `repo`.")
        if attrs["in_place"] and "path" not in attrs:
            raise serializers.ValidationError({"in_place": ["Give the `path` of the files."]})
        if "repo" not in attrs and not attrs.get("model"):
            raise serializers.ValidationError({"model": ["This field is required."]})
        return attrs


class LimitSerializer(serializers.Serializer):
    """How fast an import may be fetched."""

    bytes_per_second = serializers.IntegerField(allow_null=True, min_value=1, help_text="Null: as fast as it goes.")


class HubHitSerializer(serializers.Serializer):
    """A model that a Hub has."""

    repo = serializers.CharField()
    downloads = serializers.IntegerField()
    likes = serializers.IntegerField()
    gated = serializers.BooleanField()
    private = serializers.BooleanField()
    license = serializers.CharField()
    task = serializers.CharField()


class HubQuerySerializer(serializers.Serializer):
    """Whose eyes look, and at what."""

    search = serializers.CharField(required=False, max_length=200)
    repo = serializers.CharField(required=False, max_length=200)
    revision = serializers.CharField(default="main", max_length=200)
    patterns = serializers.CharField(default="", allow_blank=True, max_length=2000, help_text="With commas between.")
    token = serializers.SlugRelatedField(slug_field="name", queryset=HubToken.objects.all(), required=False)


class HubFileSerializer(serializers.Serializer):
    path = serializers.CharField()
    size = serializers.IntegerField()
    sha256 = serializers.CharField(allow_blank=True)
    taken = serializers.BooleanField(help_text="It would be fetched.")


class HubModelSerializer(serializers.Serializer):
    """A repository at a commit, and what of it would be fetched."""

    repo = serializers.CharField()
    commit = serializers.CharField()
    gated = serializers.BooleanField()
    private = serializers.BooleanField()
    license = serializers.CharField()
    reason = serializers.CharField(help_text="Why these files.")
    size_bytes = serializers.IntegerField(help_text="Of the files that would be fetched.")
    files = HubFileSerializer(many=True)


class HubTokenSerializer(serializers.ModelSerializer):
    """A token is taken, and never shown."""

    token = serializers.CharField(write_only=True, max_length=400)

    class Meta:
        model = HubToken
        fields = ["id", "name", "token", "created_at"]
        read_only_fields = ["created_at"]
        extra_kwargs = {"name": {"validators": []}}  # a taken name is the service's to refuse
