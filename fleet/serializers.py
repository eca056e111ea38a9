"""Fleet rows as the REST API shows them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.conf import settings
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from fleet.join import DEFAULT_TTL, MAX_TTL
from fleet.models import Gateway, JoinToken, Role, Server
from fleet.status import NodeStatus, status_of


class _NodeSerializer(serializers.ModelSerializer):
    """`status` and its age are derived at the moment of reading."""

    status = serializers.SerializerMethodField(help_text="From what was last seen of it, and how long ago.")
    age_s = serializers.SerializerMethodField(help_text="Seconds since it was last seen; null: never.")
    last_seen_at = serializers.SerializerMethodField()
    release = serializers.SerializerMethodField()

    @extend_schema_field(serializers.ChoiceField(choices=[status.value for status in NodeStatus]))
    def get_status(self, node: Server | Gateway) -> str:
        return status_of(node, timezone.now(), settings.LEASE_S).state.value

    def get_age_s(self, node: Server | Gateway) -> float | None:
        age_s = status_of(node, timezone.now(), settings.LEASE_S).age_s
        return None if age_s is None else round(age_s, 1)

    def get_last_seen_at(self, node: Server | Gateway) -> dt.datetime | None:
        return _of_state(node, "last_seen_at", None)

    def get_release(self, node: Server | Gateway) -> str:
        return _of_state(node, "release", "")


class ServerSerializer(_NodeSerializer):
    facts = serializers.SerializerMethodField(help_text="CPU, memory, runtimes, addresses; null: never connected.")
    load = serializers.SerializerMethodField(help_text="Newest load report, every 5 s.")
    load_at = serializers.SerializerMethodField()
    cache = serializers.SerializerMethodField(
        help_text="Model files there: each version, how whole, when used; null: its agent does not tell."
    )
    cache_at = serializers.SerializerMethodField()
    desired_generation = serializers.SerializerMethodField()
    observed_generation = serializers.SerializerMethodField()
    rejected = serializers.SerializerMethodField(
        help_text="Why it refused the newest desired state; empty: it did not."
    )

    class Meta:
        model = Server
        fields = [
            "id",
            "name",
            "labels",
            "availability",
            "status",
            "age_s",
            "last_seen_at",
            "release",
            "facts",
            "load",
            "load_at",
            "cache_quota_bytes",
            "keep_versions",
            "download_bytes_per_second",
            "upload_bytes_per_second",
            "cache",
            "cache_at",
            "desired_generation",
            "observed_generation",
            "rejected",
            "certificate_expires_at",
            "created_at",
            "revoked_at",
        ]
        read_only_fields = ["id", "availability", "certificate_expires_at", "created_at", "revoked_at"]

    def validate(self, asked: dict[str, Any]) -> dict[str, Any]:
        bounds = ("cache_quota_bytes", "download_bytes_per_second", "upload_bytes_per_second")
        if wrong := [name for name in bounds if asked.get(name) is not None and asked[name] <= 0]:
            raise serializers.ValidationError(dict.fromkeys(wrong, "More than 0, or null for no bound."))
        return asked

    def validate_labels(self, labels: Any) -> dict[str, str]:
        if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
            raise serializers.ValidationError('An object of strings, e.g. {"rack": "b2"}.')
        return labels

    @extend_schema_field(serializers.JSONField(allow_null=True))
    def get_facts(self, server: Server) -> dict[str, Any] | None:
        return _of_state(server, "facts", None)

    @extend_schema_field(serializers.JSONField(allow_null=True))
    def get_load(self, server: Server) -> dict[str, Any] | None:
        return _of_state(server, "load", None)

    def get_load_at(self, server: Server) -> dt.datetime | None:
        return _of_state(server, "load_at", None)

    @extend_schema_field(serializers.JSONField(allow_null=True))
    def get_cache(self, server: Server) -> dict[str, Any] | None:
        return _of_state(server, "cache", None)

    def get_cache_at(self, server: Server) -> dt.datetime | None:
        return _of_state(server, "cache_at", None)

    def get_desired_generation(self, server: Server) -> int:
        desired = getattr(server, "desired", None)
        return 0 if desired is None else desired.generation

    def get_observed_generation(self, server: Server) -> int:
        return _of_state(server, "observed_generation", 0)

    def get_rejected(self, server: Server) -> str:
        return _of_state(server, "rejected", "")


class GatewaySerializer(_NodeSerializer):
    base_url = serializers.SerializerMethodField()
    requests_per_minute = serializers.SerializerMethodField()
    tokens_per_minute = serializers.SerializerMethodField()
    in_flight = serializers.SerializerMethodField(help_text="Requests in flight, all instances together.")

    class Meta:
        model = Gateway
        fields = [
            "id",
            "name",
            "status",
            "age_s",
            "last_seen_at",
            "release",
            "base_url",
            "requests_per_minute",
            "tokens_per_minute",
            "in_flight",
            "certificate_expires_at",
            "created_at",
            "revoked_at",
        ]
        read_only_fields = fields

    def get_base_url(self, gateway: Gateway) -> str:
        return _of_state(gateway, "base_url", "")

    def get_requests_per_minute(self, gateway: Gateway) -> float:
        return _of_state(gateway, "requests_per_minute", 0.0)

    def get_tokens_per_minute(self, gateway: Gateway) -> float:
        return _of_state(gateway, "tokens_per_minute", 0.0)

    def get_in_flight(self, gateway: Gateway) -> int:
        return sum(_of_state(gateway, "in_flight", {}).values())


class JoinTokenSerializer(serializers.ModelSerializer):
    """A token without its secret, which was shown once."""

    usable = serializers.SerializerMethodField(help_text="Neither used nor expired.")
    created_by = serializers.SlugRelatedField(slug_field="username", read_only=True)

    class Meta:
        model = JoinToken
        fields = [
            "id",
            "token_id",
            "role",
            "note",
            "created_at",
            "created_by",
            "expires_at",
            "used_at",
            "used_by",
            "usable",
        ]
        read_only_fields = fields

    def get_usable(self, token: JoinToken) -> bool:
        return token.used_at is None and token.expires_at > timezone.now()


class NewJoinTokenSerializer(serializers.Serializer):
    """What a new token is for."""

    role = serializers.ChoiceField(choices=Role.choices, default=Role.AGENT.value)
    ttl_s = serializers.IntegerField(
        default=int(DEFAULT_TTL.total_seconds()), min_value=60, max_value=int(MAX_TTL.total_seconds())
    )
    note = serializers.CharField(max_length=200, allow_blank=True, default="")


class MadeJoinTokenSerializer(JoinTokenSerializer):
    """A new token, whole: this is the only time that it is shown."""

    token = serializers.CharField(read_only=True)
    command = serializers.CharField(read_only=True, help_text="To run on the machine that is to join.")

    class Meta(JoinTokenSerializer.Meta):
        fields = [*JoinTokenSerializer.Meta.fields, "token", "command"]
        read_only_fields = fields


class JoinRequestSerializer(serializers.Serializer):
    """wire.messages.JoinRequest, for the documentation: the body is read by `wire`."""

    token = serializers.CharField()
    name = serializers.CharField()
    public_key_pem = serializers.CharField(help_text="Ed25519: the node signs its tokens with it.")
    tls_public_key_pem = serializers.CharField(help_text="EC: the certificate is made for it.")
    role = serializers.ChoiceField(choices=Role.choices, default=Role.AGENT.value)
    addresses = serializers.ListField(child=serializers.CharField(), required=False)
    release = serializers.CharField(required=False)


class JoinReplySerializer(serializers.Serializer):
    """wire.messages.JoinReply, for the documentation."""

    node_id = serializers.CharField()
    name = serializers.CharField()
    certificate_pem = serializers.CharField()
    ca_pem = serializers.CharField()
    signing_public_key_pem = serializers.CharField()


def _of_state(node: Server | Gateway, name: str, missing: Any) -> Any:
    state = getattr(node, "state", None)
    return missing if state is None else getattr(state, name)
