"""REST API of pins."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, serializers, viewsets

from models_registry import pins
from models_registry.models import Pin


class PinSerializer(serializers.ModelSerializer):
    version_name = serializers.CharField(source="version.__str__", read_only=True)
    server_name = serializers.CharField(source="server.name", read_only=True, default=None, allow_null=True)

    class Meta:
        model = Pin
        fields = ["id", "version", "version_name", "server", "server_name", "created_at"]
        read_only_fields = ["created_at"]
        extra_kwargs = {
            "server": {"required": False, "allow_null": True, "help_text": "Id of a server; null: every server."}
        }
        validators: list[Any] = []  # pinning again is harmless


@extend_schema_view(
    list=extend_schema(summary="List pins: versions that servers should always have"),
    retrieve=extend_schema(summary="Show a pin"),
    create=extend_schema(summary="Have a version fetched to a server, or to all, ahead of its use, and kept there"),
    destroy=extend_schema(summary="Let a version go; it stays until its room is needed"),
)
class PinsViewSet(
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.CreateModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet,
):
    queryset = Pin.objects.select_related("version__model", "server").defer("version__manifest", "version__metadata")
    serializer_class = PinSerializer
    filterset_fields = ["version", "server"]
    ordering_fields = ["created_at"]

    def perform_create(self, serializer: PinSerializer) -> None:
        asked = serializer.validated_data
        serializer.instance = pins.pin(asked["version"], asked.get("server"))

    def perform_destroy(self, instance: Pin) -> None:
        pins.unpin(instance.version, instance.server)
