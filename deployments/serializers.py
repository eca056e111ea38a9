"""Shapes of the REST API. Checks that matter are the services'; here is only what JSON needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from deployments import services
from deployments.models import Deployment, Event, Instance, Revision
from deployments.status import DeploymentState
from models_registry.aliases import resolve
from models_registry.models import ModelVersion
from wire.engine import RuntimeKind


class DeploymentStatusSerializer(serializers.Serializer):
    state = serializers.ChoiceField(choices=[(state.value, state.value) for state in DeploymentState])
    ready = serializers.IntegerField(help_text="Instances that serve now.")
    desired = serializers.IntegerField(help_text="Instances that should serve.")
    reason = serializers.CharField(help_text="Why it is not what it should be.")


class RevisionSerializer(serializers.ModelSerializer):
    model = serializers.CharField(source="model_version.__str__", read_only=True, help_text="name:version")

    class Meta:
        model = Revision
        fields = [
            "id",
            "deployment",
            "number",
            "model_version",
            "model",
            "engine",
            "runtime",
            "image",
            "parameters",
            "placement",
            "created_at",
            "created_by",
        ]
        read_only_fields = fields


class DeploymentSerializer(serializers.ModelSerializer):
    """A deployment as it is read."""

    status = serializers.SerializerMethodField()
    revision = RevisionSerializer(read_only=True)
    alias = serializers.StringRelatedField(allow_null=True, help_text="NAME@ALIAS that it follows; null: none.")

    class Meta:
        model = Deployment
        fields = [
            "id",
            "name",
            "description",
            "replicas",
            "running",
            "version",
            "status",
            "explanation",
            "refusals",
            "revision",
            "alias",
            "created_at",
            "updated_at",
        ]
        read_only_fields = fields

    @extend_schema_field(DeploymentStatusSerializer)
    def get_status(self, deployment: Deployment) -> dict[str, Any]:
        known = self.context.get("statuses") or {}
        return asdict(known.get(deployment.pk) or services.status_of(deployment))


class PlacementSerializer(serializers.Serializer):
    labels = serializers.DictField(
        child=serializers.CharField(), required=False, help_text="Labels a server must have."
    )
    servers = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Names of the servers to choose from."
    )
    gpus = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, help_text="GPUs of one instance; absent: as few as hold it."
    )


class SpecSerializer(serializers.Serializer):
    """What makes a revision."""

    model_version = serializers.PrimaryKeyRelatedField(
        queryset=ModelVersion.objects.select_related("model"), required=False, help_text="Or `model`."
    )
    model = serializers.CharField(
        required=False,
        max_length=200,
        help_text="NAME:VERSION, or NAME@ALIAS: then it follows the alias, and rolls out what that moves to.",
    )
    engine = serializers.CharField(required=False, max_length=20)
    replicas = serializers.IntegerField(required=False, min_value=0, max_value=services.MAX_REPLICAS)
    runtime = serializers.ChoiceField(choices=[(kind.value, kind.value) for kind in RuntimeKind], required=False)
    image = serializers.CharField(required=False, allow_blank=True, max_length=300)
    parameters = serializers.DictField(required=False, help_text="See GET /api/v1/engines/ for what there is.")
    placement = PlacementSerializer(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """`model` as the services take it: a version, and the alias that named it."""
        text = attrs.pop("model", None)
        if text is None:
            return attrs
        if "model_version" in attrs:
            raise serializers.ValidationError({"model": ["Give either `model` or `model_version`."]})
        named = resolve(text)
        return {**attrs, "model_version": named.version, "alias": named.alias}


class DeploymentCreateSerializer(SpecSerializer):
    name = serializers.CharField(max_length=120)
    description = serializers.CharField(required=False, allow_blank=True)
    running = serializers.BooleanField(required=False)


class DeploymentChangeSerializer(SpecSerializer):
    """Only what is to change; a changed spec becomes a new revision, which rolls out."""

    name = serializers.CharField(required=False, max_length=120, help_text="As it is: it cannot be changed.")
    description = serializers.CharField(required=False, allow_blank=True)
    running = serializers.BooleanField(required=False)


class ScaleSerializer(serializers.Serializer):
    replicas = serializers.IntegerField(min_value=0, max_value=services.MAX_REPLICAS)


class RollbackSerializer(serializers.Serializer):
    revision = serializers.IntegerField(min_value=1, help_text="Number of the revision to go back to.")


class EstimatePartSerializer(serializers.Serializer):
    name = serializers.CharField()
    host_bytes = serializers.IntegerField()
    gpu_bytes = serializers.IntegerField()
    text = serializers.CharField()


class EstimateSerializer(serializers.Serializer):
    host_bytes = serializers.IntegerField()
    gpu_bytes = serializers.IntegerField(help_text="Of all GPUs of one instance together.")
    parts = EstimatePartSerializer(many=True)


class ServerAnswerSerializer(serializers.Serializer):
    server = serializers.CharField()
    fits = serializers.BooleanField()
    reason = serializers.CharField()
    instances = serializers.IntegerField(help_text="Of those asked for, how many would go there.")


class PreviewSerializer(serializers.Serializer):
    estimate = EstimateSerializer()
    gpus = serializers.IntegerField()
    max_context_tokens = serializers.IntegerField(allow_null=True)
    replicas = serializers.IntegerField()
    placed = serializers.IntegerField()
    servers = ServerAnswerSerializer(many=True)
    summary = serializers.CharField()


class InstanceSerializer(serializers.ModelSerializer):
    deployment_name = serializers.CharField(source="deployment.name", read_only=True)
    server_name = serializers.CharField(source="server.name", read_only=True, default=None, allow_null=True)
    revision_number = serializers.IntegerField(source="revision.number", read_only=True)

    class Meta:
        model = Instance
        fields = [
            "id",
            "deployment",
            "deployment_name",
            "revision",
            "revision_number",
            "server",
            "server_name",
            "phase",
            "phase_since",
            "phase_reason",
            "state",
            "reason",
            "state_since",
            "observed_at",
            "gpu_indexes",
            "memory_bytes",
            "gpu_memory_bytes",
            "used_memory_bytes",
            "placement_reason",
            "runtime",
            "unit_id",
            "port",
            "restarts",
            "progress",
            "exits",
            "created_at",
            "ended_at",
        ]
        read_only_fields = fields


class EventSerializer(serializers.ModelSerializer):
    class Meta:
        model = Event
        fields = [
            "id",
            "at",
            "severity",
            "kind",
            "message",
            "remedy",
            "details",
            "deployment",
            "instance",
            "server",
        ]
        read_only_fields = fields


class LogSerializer(serializers.Serializer):
    instance = serializers.CharField()
    server = serializers.CharField(allow_null=True)
    live = serializers.BooleanField(help_text="False: kept lines of earlier attempts.")
    note = serializers.CharField(help_text="Why it is not live.")
    lines = serializers.ListField(child=serializers.CharField())


class EngineSerializer(serializers.Serializer):
    name = serializers.CharField()
    title = serializers.CharField()
    program = serializers.CharField(help_text="Program that the process runtime starts.")
    image = serializers.CharField(help_text="Image that the docker runtime starts when none is named, without GPU.")
    parameters = serializers.DictField(help_text="JSON Schema of the parameters.")
