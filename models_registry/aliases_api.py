"""REST API of aliases."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter

from models_registry import aliases
from models_registry.acting import actor_of
from models_registry.models import AliasMove, ModelAlias, ModelVersion


class ModelAliasSerializer(serializers.ModelSerializer):
    """A name that points at a version."""

    model = serializers.CharField(source="model.name", read_only=True)
    version = serializers.CharField(source="version.version", read_only=True)
    model_version = serializers.IntegerField(source="version_id", read_only=True)
    followers = serializers.SerializerMethodField(help_text="Deployments that follow it.")

    class Meta:
        model = ModelAlias
        fields = ["id", "model", "name", "version", "model_version", "pinned", "moved_by", "moved_at", "followers"]
        read_only_fields = fields

    def get_followers(self, row: ModelAlias) -> list[str]:
        return sorted(one.name for one in row.followers.all())


class AliasSetSerializer(serializers.Serializer):
    """An alias, and where it should point. The model is the version's."""

    name = serializers.CharField(max_length=40)
    model_version = serializers.PrimaryKeyRelatedField(queryset=ModelVersion.objects.select_related("model"))


class AliasChangeSerializer(serializers.Serializer):
    """Where it should point; or, of `latest`, that it follows the newest version again."""

    model_version = serializers.PrimaryKeyRelatedField(
        queryset=ModelVersion.objects.select_related("model"), required=False
    )
    pinned = serializers.BooleanField(required=False, help_text="false: `latest` follows the newest by itself.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("model_version" in attrs) == (attrs.get("pinned") is False):
            raise serializers.ValidationError("Give either `model_version`, or `pinned` false.")
        return attrs


class AliasMoveSerializer(serializers.ModelSerializer):
    """Something that happened to an alias."""

    class Meta:
        model = AliasMove
        fields = ["name", "at", "by", "from_version", "to_version", "pinned"]
        read_only_fields = fields


class AliasMoves:
    """A verb of the view set of models."""

    @extend_schema(
        summary="Show where all aliases of a model have been, newest first, also of those that are gone",
        responses=AliasMoveSerializer(many=True),
        filters=False,
    )
    @action(detail=True, methods=["get"], url_path="alias-moves")
    def alias_moves(self, request: Request, pk: str) -> Response:
        page = self.paginate_queryset(self.get_object().alias_moves.order_by("-at", "-id"))
        return self.get_paginated_response(AliasMoveSerializer(page, many=True).data)


class AliasFilter(filters.FilterSet):
    model = filters.CharFilter(field_name="model__name", help_text="Name of the model.")

    class Meta:
        model = ModelAlias
        fields = ["model", "name", "version"]


@extend_schema_view(
    list=extend_schema(summary="List aliases"), retrieve=extend_schema(summary="Show where an alias points")
)
class ModelAliasesViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    queryset = ModelAlias.objects.select_related("model", "version").order_by("model__name", "name")
    serializer_class = ModelAliasSerializer
    filterset_class = AliasFilter
    search_fields = ["name", "model__name"]
    ordering_fields = ["name", "model__name", "moved_at"]

    def get_queryset(self) -> QuerySet[ModelAlias]:
        return super().get_queryset().prefetch_related("followers").defer("version__manifest", "version__metadata")

    @extend_schema(summary="Make an alias, or move it", request=AliasSetSerializer, responses=ModelAliasSerializer)
    def create(self, request: Request) -> Response:
        asked = AliasSetSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        found = asked.validated_data
        row = aliases.set_alias(found["model_version"], found["name"], by=actor_of(request), now=timezone.now())
        return self._answer(row)

    @extend_schema(summary="Move an alias", request=AliasChangeSerializer, responses=ModelAliasSerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        asked = AliasChangeSerializer(data=request.data)
        row = self.get_object()
        asked.is_valid(raise_exception=True)
        if (version := asked.validated_data.get("model_version")) is None:
            return self._answer(aliases.release_latest(row, by=actor_of(request), now=timezone.now()))
        return self._answer(aliases.move_alias(row, version, by=actor_of(request), now=timezone.now()))

    @extend_schema(summary="Delete an alias that no deployment follows", responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        aliases.delete_alias(self.get_object(), by=actor_of(request), now=timezone.now())
        return Response(status=204)

    @extend_schema(
        summary="Show where an alias has been, newest first", responses=AliasMoveSerializer(many=True), filters=False
    )
    @action(detail=True, methods=["get"])
    def history(self, request: Request, pk: str) -> Response:
        row = self.get_object()
        page = self.paginate_queryset(row.model.alias_moves.filter(name=row.name).order_by("-at", "-id"))
        return self.get_paginated_response(AliasMoveSerializer(page, many=True).data)

    def _answer(self, row: ModelAlias) -> Response:
        return Response(ModelAliasSerializer(self.get_queryset().get(pk=row.pk)).data)


def register(router: BaseRouter) -> None:
    router.register("model-aliases", ModelAliasesViewSet)
