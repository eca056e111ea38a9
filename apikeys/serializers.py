"""Projects, keys and usage as the REST API shows and takes them."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

from django.contrib.auth import get_user_model
from django.utils import timezone
from rest_framework import serializers

from apikeys import services, usage
from apikeys.checks import HIGHEST_PRIORITY, LONGEST_OVERLAP
from apikeys.errors import InvalidPeriod
from apikeys.models import ApiKey, ManagementKey, Membership, ModelQuota, Project, ProjectRole, QuotaWarning
from apikeys.money import PLACES, from_nano, to_nano
from wire.feed import ENDPOINT_GROUPS
from wire.redaction import LONGEST_PATTERN

_LIMITS = list(services.LIMIT_FIELDS)
_COUNTS = [name for name in _LIMITS if name != "cost_per_month"]
_LIMIT_OPTIONS = {name: {"min_value": 1, "allow_null": True, "required": False} for name in _COUNTS}
_USAGE_DAYS = 30
_MOST_USAGE_DAYS = 400


class MoneyField(serializers.DecimalField):
    """Nano-units, shown and taken as a decimal amount in the installation's currency."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_digits=18, decimal_places=PLACES, **kwargs)

    def to_internal_value(self, data: Any) -> int:
        return to_nano(super().to_internal_value(data))

    def to_representation(self, value: int) -> str:
        return f"{from_nano(value):f}"


def _cost_limit() -> MoneyField:
    return MoneyField(
        min_value=Decimal("0.000001"),
        allow_null=True,
        required=False,
        help_text="Of a UTC month, by the models' prices.",
    )


class ModelQuotaSerializer(serializers.ModelSerializer):
    """Limits of a project's use of one model."""

    cost_per_month = _cost_limit()

    class Meta:
        model = ModelQuota
        fields = ["id", "model", *_LIMITS, "updated_at"]
        read_only_fields = ["updated_at"]
        extra_kwargs = _LIMIT_OPTIONS


class QuotaWarningSerializer(serializers.ModelSerializer):
    """A limit that was used up to a share; `used` and `allowed` in tokens, or money for `cost_per_month`."""

    used = serializers.SerializerMethodField()
    allowed = serializers.SerializerMethodField()

    class Meta:
        model = QuotaWarning
        fields = ["subject", "limit", "period", "percent", "used", "allowed", "at"]

    def get_used(self, row: QuotaWarning) -> str:
        return row.shown(row.used)

    def get_allowed(self, row: QuotaWarning) -> str:
        return row.shown(row.allowed)


class ProjectSerializer(serializers.ModelSerializer):
    """A project and its quota; a limit that is null does not limit."""

    key_count = serializers.IntegerField(read_only=True)
    cost_per_month = _cost_limit()
    model_quotas = ModelQuotaSerializer(many=True, read_only=True)
    request_log_redact = serializers.ListField(
        child=serializers.CharField(max_length=LONGEST_PATTERN, trim_whitespace=False),
        required=False,
        help_text="RE2 patterns; what they match in kept texts is replaced.",
    )

    class Meta:
        model = Project
        fields = [
            *("id", "name", "description", "active", "priority", *_LIMITS),
            *("request_log_days", "request_log_redact", "guard_url", "guard_timeout_ms", "guard_fail_open"),
            *("model_quotas", "key_count", "created_at", "updated_at"),
        ]
        read_only_fields = ["created_at", "updated_at"]
        extra_kwargs = _LIMIT_OPTIONS | {
            "name": {"validators": []},  # taken names are the service's to refuse
            "priority": {"min_value": 1, "max_value": HIGHEST_PRIORITY},
        }

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


class ManagementKeySerializer(serializers.ModelSerializer):
    """A management key without its secret. `user` is whose rights it has; yours when left out."""

    prefix = serializers.CharField(read_only=True)
    user = serializers.SlugRelatedField(
        slug_field="username", queryset=get_user_model().objects.all(), default=serializers.CurrentUserDefault()
    )
    allowed_networks = serializers.ListField(
        child=serializers.CharField(max_length=60),
        allow_null=True,
        required=False,
        help_text="CIDRs its clients come from; null: any.",
    )

    class Meta:
        model = ManagementKey
        fields = [
            *("id", "prefix", "user", "name", "read_only", "allowed_networks", "expires_at", "revoked_at"),
            *("created_at", "created_by", "last_used_at"),
        ]
        read_only_fields = ["id", "revoked_at", "created_at", "created_by", "last_used_at"]


class NewManagementKeySerializer(ManagementKeySerializer):
    """The one answer that holds the whole key."""

    key = serializers.CharField(read_only=True)

    class Meta(ManagementKeySerializer.Meta):
        fields = [*ManagementKeySerializer.Meta.fields, "key"]


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
    allowed_endpoints = serializers.ListField(
        child=serializers.ChoiceField(choices=ENDPOINT_GROUPS),
        allow_null=True,
        required=False,
        help_text="Groups of endpoints it may use; null: all.",
    )
    allowed_networks = serializers.ListField(
        child=serializers.CharField(max_length=60),
        allow_null=True,
        required=False,
        help_text="CIDRs its clients come from; null: any.",
    )
    cost_per_month = _cost_limit()

    class Meta:
        model = ApiKey
        fields = [
            "id",
            "prefix",
            "name",
            "project",
            "project_name",
            "service",
            "allowed_models",
            "allowed_endpoints",
            "allowed_networks",
            *_LIMITS,
            "expires_at",
            "rotated_at",
            "previous_until",
            "revoked_at",
            "created_at",
            "created_by",
            "last_used_at",
        ]
        read_only_fields = [
            *("id", "rotated_at", "previous_until", "revoked_at", "created_at", "created_by", "last_used_at"),
        ]
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


class RotationSerializer(serializers.Serializer):
    """How long both secrets are good."""

    overlap_s = serializers.IntegerField(
        default=3600,
        min_value=0,
        max_value=int(LONGEST_OVERLAP.total_seconds()),
        help_text="Seconds for which the secret before stays good; 0: it ends at once.",
    )


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
        until = values.get("until") or timezone.now()
        values.setdefault("since", until - dt.timedelta(days=_USAGE_DAYS))
        if until - values["since"] > dt.timedelta(days=_MOST_USAGE_DAYS):
            raise InvalidPeriod(f"A period has {_MOST_USAGE_DAYS} days at most: ask for it in parts.")
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
    status = serializers.IntegerField(allow_null=True)
    requests = serializers.IntegerField()
    errors = serializers.IntegerField(help_text="Requests that ended with status 400 or more.")
    prompt_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    total_tokens = serializers.IntegerField()
    duration_ms = serializers.IntegerField(help_text="Summed over the requests.")
    ttft_ms = serializers.IntegerField(help_text="Time to first token, summed over the requests that had one.")
    cost = MoneyField(help_text="By the models' prices at the time.")
    duration_p50_ms = serializers.IntegerField(allow_null=True, help_text="Half of the requests took at most that.")
    duration_p95_ms = serializers.IntegerField(allow_null=True)
    ttft_p50_ms = serializers.IntegerField(allow_null=True, help_text="Time to first token.")
    ttft_p95_ms = serializers.IntegerField(allow_null=True)
