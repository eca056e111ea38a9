"""Models and versions as the REST API shows and takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from models_registry import catalog, words
from models_registry import tags as tagging
from models_registry.compare import Change
from models_registry.fetching.schedule import MOST_BYTES_PER_SECOND
from models_registry.fetching.services import MOST_PRIORITY
from models_registry.fetching.work import Detail
from models_registry.import_serializers import SOURCES, S3SourceSerializer, UrlsField
from models_registry.inspect.scanner import Danger
from models_registry.inspect.signatures import Kind
from models_registry.location_models import StorageLocation
from models_registry.models import NAME, HubToken, Model, ModelVersion, VersionState
from models_registry.tenants import projects_of, usable_tokens


class TagsField(serializers.ListField):
    """Tags as a list; rows keep them as one text."""

    child = serializers.CharField(max_length=60)

    def to_representation(self, data: str) -> list[str]:
        return tagging.unpacked(data)

    def to_internal_value(self, data: Any) -> str:
        return tagging.packed(super().to_internal_value(data))


class ModelSerializer(serializers.ModelSerializer):
    """A model, with how many versions it has."""

    version_count = serializers.IntegerField(read_only=True)
    tags = TagsField(required=False)

    class Meta:
        model = Model
        fields = ["id", "name", "description", "notes", "tags", "version_count", "created_at"]
        read_only_fields = ["created_at"]

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        if self.instance is not None:  # the name is in every manifest's label by now
            fields["name"].read_only = True
        return fields


class ImportDetailSerializer(serializers.Serializer):
    """How far a fetch is. Rates in bytes a second, times in seconds."""

    paused = serializers.BooleanField()
    priority = serializers.IntegerField()
    limit_bytes_per_second = serializers.IntegerField(allow_null=True)
    done_bytes = serializers.IntegerField()
    total_bytes = serializers.IntegerField()
    bytes_per_second = serializers.FloatField()
    eta_s = serializers.FloatField(allow_null=True)
    files = serializers.ListField(help_text="Of those under way: path, bytes there, bytes in all.")


class ModelVersionSerializer(serializers.ModelSerializer):
    """A version without its files."""

    model = serializers.CharField(source="model.name", read_only=True)
    fetching = serializers.SerializerMethodField(help_text="Of an import from elsewhere that is under way.")
    tags = TagsField(read_only=True)
    words = serializers.SerializerMethodField(help_text="In one line, with the servers that have room for it.")
    license_to_accept = serializers.SerializerMethodField(help_text="It is deployed only once somebody accepted it.")

    class Meta:
        model = ModelVersion
        exclude = ["manifest", "scan"]

    def get_words(self, row: ModelVersion) -> str:
        known = self.context.get("words") or words.sentences([row], timezone.now())
        return known.get(row.pk, "")

    def get_license_to_accept(self, row: ModelVersion) -> bool:
        return catalog.waits_for_acceptance(row)

    @extend_schema_field(ImportDetailSerializer(allow_null=True))
    def get_fetching(self, row: ModelVersion) -> dict[str, Any] | None:
        job = getattr(row, "job", None) if row.state == VersionState.IMPORTING else None
        if job is None or not job.is_fetched:
            return None
        said = {"paused": job.paused, "priority": job.priority, "limit_bytes_per_second": job.limit_bytes_per_second}
        return {**msgspec.to_builtins(msgspec.convert(job.detail, Detail)), **said}


class ManifestFileSerializer(serializers.Serializer):
    path = serializers.CharField()
    size_bytes = serializers.IntegerField()
    sha256 = serializers.CharField()
    flags = serializers.ListField(child=serializers.CharField(), help_text="pickle, archive, code: it can run code.")


class FindingSerializer(serializers.Serializer):
    """A file that can run code."""

    path = serializers.CharField()
    kind = serializers.ChoiceField(choices=[(one.value, one.value) for one in Danger])
    imports = serializers.ListField(child=serializers.CharField(), help_text="What it names, as module.name.")
    dangerous = serializers.ListField(child=serializers.CharField(), help_text="Those not known to be harmless.")
    note = serializers.CharField(help_text="Why it was not looked through to its end.")


class SignatureSerializer(serializers.Serializer):
    """A signature or a checksum list: listed, not verified against a trust root. Counts are of files that it names."""

    path = serializers.CharField()
    kind = serializers.ChoiceField(choices=[(one.value, one.value) for one in Kind])
    signer = serializers.CharField(help_text="Who it says has signed; empty: it does not say.")
    signed_file = serializers.CharField(help_text="Of a signature that lies beside the one file that it is of.")
    covered_count = serializers.IntegerField(help_text="Files of this version.")
    differing = serializers.ListField(
        child=serializers.CharField(), help_text="The first 20 of those whose sha256 is another one."
    )
    differing_count = serializers.IntegerField()
    uncompared_count = serializers.IntegerField(help_text="Files of this version of which it names no sha256.")
    missing_count = serializers.IntegerField(help_text="Files that this version does not have.")
    note = serializers.CharField(help_text="Why it was not read, or not to its end.")


class ModelVersionDetailSerializer(ModelVersionSerializer):
    """A version with its files, and what was found in them."""

    files = serializers.SerializerMethodField()
    findings = serializers.SerializerMethodField(help_text="Null: its files were not looked through yet.")
    signatures = serializers.SerializerMethodField(
        help_text="The first 100; not verified against a trust root. Null: they were not looked for yet."
    )

    @extend_schema_field(ManifestFileSerializer(many=True))
    def get_files(self, row: ModelVersion) -> list[dict[str, Any]]:
        return catalog.files_of(row)

    @extend_schema_field(FindingSerializer(many=True, allow_null=True))
    def get_findings(self, row: ModelVersion) -> list[dict[str, Any]] | None:
        return None if row.scan is None else row.scan["files"]

    @extend_schema_field(SignatureSerializer(many=True, allow_null=True))
    def get_signatures(self, row: ModelVersion) -> list[dict[str, Any]] | None:
        return catalog.signatures_of(row)


class AnnotateSerializer(serializers.Serializer):
    """What people say of a version."""

    notes = serializers.CharField(required=False, allow_blank=True, max_length=20_000)
    tags = serializers.ListField(required=False, child=serializers.CharField(max_length=60))


class CompareQuerySerializer(serializers.Serializer):
    """With which version; in a query, `with`."""

    def get_fields(self) -> dict[str, Any]:
        other = serializers.PrimaryKeyRelatedField(
            queryset=ModelVersion.objects.select_related("model"), help_text="Id of the version to compare with."
        )
        return {"with": other}  # a word that Python keeps for itself


class FileDifferenceSerializer(serializers.Serializer):
    path = serializers.CharField()
    change = serializers.ChoiceField(choices=[(one.value, one.value) for one in Change])
    before_bytes = serializers.IntegerField(allow_null=True)
    after_bytes = serializers.IntegerField(allow_null=True)


class DifferenceSerializer(serializers.Serializer):
    key = serializers.CharField()
    before = serializers.CharField(help_text="Empty: it is not there.")
    after = serializers.CharField()


class ComparisonSerializer(serializers.Serializer):
    """From this version to the other."""

    files = FileDifferenceSerializer(many=True)
    facts = DifferenceSerializer(many=True)
    config = DifferenceSerializer(many=True, help_text="Of config.json, or of a GGUF's own values.")
    template = serializers.ListField(child=serializers.CharField(), help_text="Lines of a diff of chat templates.")


class AllowSerializer(serializers.Serializer):
    allowed = serializers.BooleanField(default=True, help_text="false: take it back.")


class UsableToken(serializers.SlugRelatedField):
    """A Hub token by its name, of those that who asks may use."""

    def __init__(self, **options: Any) -> None:
        super().__init__(slug_field="name", queryset=HubToken.objects.none(), **options)

    def get_queryset(self) -> QuerySet[HubToken]:
        return usable_tokens(self.context["request"].user)


class ImportSerializer(serializers.Serializer):
    """What to import: files of the master's machine, one uploaded file, or files from elsewhere."""

    model = serializers.CharField(
        max_length=120,
        required=False,
        validators=[NAME],
        help_text="Name of the model; made when new. Repositories, buckets and archives bring one of their own.",
    )
    version = serializers.CharField(max_length=40, required=False, help_text="Default: the next free number.")
    path = serializers.CharField(required=False, help_text="A file, folder or archive on the master's machine.")
    file = serializers.FileField(required=False, help_text="One file, or an archive, in multipart form data.")
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
        help_text="Files of a repository or bucket to take, such as *Q4_K_M.gguf; default: the sensible ones.",
    )
    token = UsableToken(required=False, help_text="Name of a Hub token.")
    limit_bytes_per_second = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, max_value=MOST_BYTES_PER_SECOND
    )

    urls = UrlsField(required=False, help_text="http(s) URLs, each with a `sha256` and a place (`path`) if you like.")
    headers = serializers.DictField(
        child=serializers.CharField(max_length=4000), required=False, write_only=True, help_text="To send with `urls`."
    )
    bearer_token = serializers.CharField(
        max_length=4000, required=False, write_only=True, help_text="For `urls` or `modelscope`; sealed."
    )
    s3 = S3SourceSerializer(required=False)
    modelscope = serializers.CharField(max_length=400, required=False, help_text="ms://org/name@revision")
    priority = serializers.IntegerField(
        default=0, min_value=-MOST_PRIORITY, max_value=MOST_PRIORITY, help_text="Of what is fetched: higher ones first."
    )

    def validate_path(self, value: str) -> Path:
        if "\0" in value or not value.startswith("/"):
            raise serializers.ValidationError("Give an absolute path.")
        return Path(value)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        given = [name for name in SOURCES if name in attrs]
        if len(given) != 1:
            names = ", ".join(f"`{name}`" for name in SOURCES)
            said = f"{' and '.join(f'`{name}`' for name in given)} are given" if given else "no source is given"
            raise serializers.ValidationError(f"Give one of {names}: {said}.")
        if attrs["in_place"] and "path" not in attrs:
            raise serializers.ValidationError({"in_place": ["Give the `path` of the files."]})
        return attrs


class LimitSerializer(serializers.Serializer):
    """How fast an import may be fetched."""

    bytes_per_second = serializers.IntegerField(
        allow_null=True, min_value=1, max_value=MOST_BYTES_PER_SECOND, help_text="Null: as fast as it goes."
    )


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
    token = UsableToken(required=False)


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
        fields = ["id", "name", "project", "token", "created_at"]
        read_only_fields = ["created_at"]
        extra_kwargs = {"name": {"validators": []}}  # a taken name is the service's to refuse

    def validate_project(self, value: str) -> str:
        if value and value not in projects_of(self.context["request"].user):
            raise serializers.ValidationError("You are in no project with this id.")
        return value
