"""Routes, providers and prices as the REST API shows and takes them. Checks are the services'."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from rest_framework import serializers

from deployments.models import ModelPrice, Provider, Route, RouteTarget, TargetKind
from deployments.routing import services
from deployments.routing.services import HEAVIEST, PRICE_PLACES, TargetSpec, per_million
from wire.feed import ENDPOINT_GROUPS


class RouteTargetSerializer(serializers.Serializer):
    """Exactly one of deployment, route, and provider with its model."""

    kind = serializers.ChoiceField(choices=TargetKind.choices, default=TargetKind.SHARE.value)
    weight = serializers.IntegerField(min_value=0, max_value=HEAVIEST, default=1, help_text="Of a share; 0: paused.")
    deployment = serializers.CharField(max_length=120, required=False, allow_blank=True, help_text="Its public name.")
    route = serializers.CharField(max_length=120, required=False, allow_blank=True, help_text="Its public name.")
    provider = serializers.CharField(max_length=60, required=False, allow_blank=True)
    model = serializers.CharField(
        max_length=200, required=False, allow_blank=True, help_text="As the provider calls it."
    )

    def to_representation(self, row: RouteTarget) -> dict[str, Any]:
        told: dict[str, Any] = {"kind": row.kind, "weight": row.weight}
        if row.deployment is not None:
            return {**told, "deployment": row.deployment.name}
        if row.to is not None:
            return {**told, "route": row.to.name}
        return {**told, "provider": str(row.provider), "model": row.provider_model}


class RouteSerializer(serializers.ModelSerializer):
    """A public name that leads to others."""

    targets = RouteTargetSerializer(many=True)

    class Meta:
        model = Route
        fields = ["id", "name", "description", "listed", "targets", "created_at", "updated_at"]
        read_only_fields = ["created_at", "updated_at"]
        extra_kwargs = {"name": {"validators": []}}  # taken names are the service's to refuse

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        if self.instance is not None:  # a route keeps its name
            fields["name"].read_only = True
        return fields

    def validate_targets(self, rows: list[dict[str, Any]]) -> list[TargetSpec]:
        return [TargetSpec(**row) for row in rows]

    def create(self, validated_data: dict[str, Any]) -> Route:
        actor = self.context["request"].user.get_username()
        return services.create_route(validated_data.pop("name"), **validated_data, actor=actor)

    def update(self, instance: Route, validated_data: dict[str, Any]) -> Route:
        actor = self.context["request"].user.get_username()
        return services.update_route(instance, **validated_data, actor=actor)


class ProviderSerializer(serializers.ModelSerializer):
    """An OpenAI-compatible service outside. Its key is never shown again."""

    api_key = serializers.CharField(write_only=True, required=False, allow_blank=True, max_length=1000)
    has_key = serializers.SerializerMethodField()
    endpoints = serializers.ListField(
        child=serializers.ChoiceField(choices=ENDPOINT_GROUPS), required=False, help_text="Default: chat."
    )

    class Meta:
        model = Provider
        fields = ["id", "name", "base_url", "api_key", "has_key", "endpoints", "created_at", "updated_at"]
        read_only_fields = ["created_at", "updated_at"]
        extra_kwargs = {"name": {"validators": []}}

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        if self.instance is not None:
            fields["name"].read_only = True
        return fields

    def get_has_key(self, row: Provider) -> bool:
        return bool(row.sealed_key)

    def create(self, validated_data: dict[str, Any]) -> Provider:
        actor = self.context["request"].user.get_username()
        return services.create_provider(**validated_data, actor=actor)

    def update(self, instance: Provider, validated_data: dict[str, Any]) -> Provider:
        actor = self.context["request"].user.get_username()
        return services.update_provider(instance, **validated_data, actor=actor)


class PriceField(serializers.DecimalField):
    """Per million tokens; stored as nano-units per 1,000."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_digits=14, decimal_places=PRICE_PLACES, min_value=Decimal(0), **kwargs)

    def to_representation(self, value: int) -> str:
        return f"{per_million(value):f}"


class PriceSerializer(serializers.ModelSerializer):
    """What a million tokens of a public name cost. Usage takes the price of its time."""

    prompt = PriceField()
    completion = PriceField()
    cached = PriceField(required=False, help_text="Prompt tokens found in the engine's cache; default: as others.")

    class Meta:
        model = ModelPrice
        fields = ["id", "name", "prompt", "cached", "completion", "updated_at"]
        read_only_fields = ["updated_at"]
        extra_kwargs = {"name": {"validators": []}}

    def create(self, validated_data: dict[str, Any]) -> ModelPrice:
        return services.set_price(**validated_data)
