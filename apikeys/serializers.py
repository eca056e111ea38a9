"""Projects, keys and usage as the REST API shows and takes them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.contrib.auth import get_user_model
from django.utils import timezone
from rest_framework import serializers

from apikeys import services, usage
from apikeys.models import ApiKey, Membership, Project, ProjectRole

_LIMITS = list(services.LIMIT_FIELDS)
_LIMIT_OPTIONS = {name: {"min_value": 1, "allow_null": True, "required": False} for name in _LIMITS}
_USAGE_DAYS = 30


class ProjectSerializer(serializers.ModelSerializer):
    """A project and its quota; a limit that is null does not limit."""

    key_count = serializers.IntegerField(read_only=True)

    class Meta:
        model = Project
        fields = ["id", "name", "description", "active", *_LIMITS, "key_count", "created_at", "updated_at"]
        read_only_fields = ["created_at", "updated_at"]
        extra_kwargs = _LIMIT_OPTIONS | {"name": {"validators": []}}  # taken names are the service's to refuse

    def create(self, validated_data: dict[str, Any]) -> Project:
        return services.create_project(**validated_data)

    def update(self, instance: Project, validated_data: dict[str, Any]) -> Project:
        return services.update_project(instance, **validated_data)


class MembershipSerializer(serializers.ModelSerializer):
    """A person's role in a project, by user name."""

    user = serializers.SlugRelatedField(slug_field="username", queryset=get_user_model().objects.all())
    user_id = serializers.IntegerField(read_only=True)
    role = serializers.ChoiceField(choices=ProjectRole.choices, default=ProjectRole.MEMBER.value)

    class Meta:
        model = Membership
        fields = ["user", "user_id", "role"]


class KeySerializer(serializers.ModelSerializer):
    """A key as everybody who may see it sees it: the secret is not in it."""

    prefix = serializers.CharField(read_only=True)
    project_name = serializers.CharField(source="project.name", read_only=True)
    allowed_models = serializers.ListField(
        child=serializers.CharField(max_length=120),
        allow_null=True,
        required=False,
        help_text="Public model names it may use; null: all.",
    )

    class Meta:
        model = ApiKey
        fields = [
            "id",
            "prefix",
            "name",
            "project",
            "project_name",
            "allowed_models",
            *_LIMITS,
            "expires_at",
            "revoked_at",
            "created_at",
            "created_by",
            "last_used_at",
        ]
        read_only_fields = ["id", "revoked_at", "created_at", "created_by", "last_used_at"]
        extra_kwargs = _LIMIT_OPTIONS

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        if self.instance is not None:  # a key never moves to another project
            fields["project"].read_only = True
        return fields

    def create(self, validated_data: dict[str, Any]) -> ApiKey:
        actor = self.context["request"].user.get_username()
        key, self.text = services.create_key(**validated_data, actor=actor, now=timezone.now())
        return key

    def update(self, instance: ApiKey, validated_data: dict[str, Any]) -> ApiKey:
        return services.update_key(instance, now=timezone.now(), **validated_data)


class NewKeySerializer(KeySerializer):
    """A new key. `key` is shown in this answer only."""

    key = serializers.CharField(read_only=True, help_text="The whole key. Keep it: it is not shown again.")
    base_url = serializers.CharField(read_only=True)
    curl = serializers.CharField(read_only=True)
    python = serializers.CharField(read_only=True)
    javascript = serializers.CharField(read_only=True)
    langchain = serializers.CharField(read_only=True)
    env = serializers.CharField(read_only=True)

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "key", "base_url", "curl", "python", "javascript", "langchain", "env"]


class UsageQuerySerializer(serializers.Serializer):
    """What usage is asked for."""

    project = serializers.UUIDField(required=False)
    key = serializers.CharField(required=False, max_length=8, help_text="Id of a key.")
    model = serializers.CharField(required=False, max_length=120)
    since = serializers.DateTimeField(required=False, help_text=f"Default: {_USAGE_DAYS} days ago.")
    until = serializers.DateTimeField(required=False, help_text="Not included. Default: now.")
    group_by = serializers.CharField(
        default="day",
        help_text=f"Any of {', '.join(usage.GROUPS)}, with commas between; empty: one sum.",
        allow_blank=True,
    )

    def validate_group_by(self, value: str) -> tuple[str, ...]:
        groups = tuple(part.strip() for part in value.split(",") if part.strip())
        if unknown := sorted(set(groups) - set(usage.GROUPS)):
            raise serializers.ValidationError(f"Not one of {', '.join(usage.GROUPS)}: {', '.join(unknown)}.")
        return groups

    def asked(self) -> dict[str, Any]:
        """Arguments for `usage.totals`."""
        values = dict(self.validated_data)
        values["by"] = values.pop("group_by")
        if "since" not in values:
            until = values.get("until") or timezone.now()
            values["since"] = until - dt.timedelta(days=_USAGE_DAYS)
        return values


class UsageTotalSerializer(serializers.Serializer):
    """Summed usage of one group; fields that were not grouped by are null."""

    hour = serializers.DateTimeField(allow_null=True)
    day = serializers.DateField(allow_null=True)
    project_id = serializers.UUIDField(allow_null=True)
    project = serializers.CharField(allow_null=True)
    key_id = serializers.CharField(allow_null=True)
    key = serializers.CharField(allow_null=True)
    model = serializers.CharField(allow_null=True)
    requests = serializers.IntegerField()
    errors = serializers.IntegerField(help_text="Requests that ended with status 400 or more.")
    prompt_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    total_tokens = serializers.IntegerField()
    duration_ms = serializers.IntegerField(help_text="Summed over the requests.")
    ttft_ms = serializers.IntegerField(help_text="Time to first token, summed over the requests that had one.")
