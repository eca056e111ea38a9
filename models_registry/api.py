"""REST API of models and their versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, status, viewsets
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter

from models_registry import blobs, services
from models_registry.models import Format, Model, ModelVersion, VersionState
from models_registry.serializers import (
    ImportSerializer,
    ModelSerializer,
    ModelVersionDetailSerializer,
    ModelVersionSerializer,
)
from models_registry.uploads import StoreUploadHandler


@extend_schema_view(
    list=extend_schema(summary="List models"),
    retrieve=extend_schema(summary="Show a model"),
    create=extend_schema(summary="Make a model without versions"),
    partial_update=extend_schema(summary="Change a model's description"),
    destroy=extend_schema(summary="Delete a model without versions"),
)
class ModelsViewSet(viewsets.ModelViewSet):
    queryset = Model.objects.annotate(version_count=Count("versions")).order_by("name")
    serializer_class = ModelSerializer
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    filterset_fields = ["name"]
    search_fields = ["name", "description"]
    ordering_fields = ["name", "created_at"]

    def perform_destroy(self, instance: Model) -> None:
        services.delete_model(instance)


class VersionFilter(filters.FilterSet):
    model = filters.CharFilter(field_name="model__name", help_text="Name of the model.")
    format = filters.ChoiceFilter(choices=Format.choices)
    state = filters.ChoiceFilter(choices=VersionState.choices)
    architecture = filters.CharFilter()
    digest = filters.CharFilter()

    class Meta:
        model = ModelVersion
        fields = ["model", "format", "state", "architecture", "digest", "quantization", "version"]


@extend_schema_view(
    list=extend_schema(summary="List model versions"),
    retrieve=extend_schema(summary="Show a model version with its files"),
    destroy=extend_schema(summary="Delete a model version and the files nobody else needs"),
)
class ModelVersionsViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, mixins.DestroyModelMixin, viewsets.GenericViewSet
):
    queryset = ModelVersion.objects.select_related("model").order_by("model__name", "-created_at", "-pk")
    serializer_class = ModelVersionSerializer
    parser_classes = [JSONParser, MultiPartParser, FormParser]
    filterset_class = VersionFilter
    search_fields = ["model__name", "version", "architecture", "quantization", "source"]
    ordering_fields = ["created_at", "size_bytes", "parameter_count", "model__name", "version"]

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """Uploads go to a file whatever their size; this must be said before anything reads the body."""
        if request.method == "POST":
            request.upload_handlers = [StoreUploadHandler(request)]
        return super().initialize_request(request, *args, **kwargs)

    def get_queryset(self) -> QuerySet[ModelVersion]:
        versions = super().get_queryset()
        return versions.defer("manifest") if self.action == "list" else versions

    def get_serializer_class(self) -> type:
        if self.action == "create":
            return ImportSerializer
        return ModelVersionDetailSerializer if self.action == "retrieve" else ModelVersionSerializer

    @extend_schema(
        summary="Import a model version",
        description="Answers at once; poll the version until `state` is `ready` or `failed` (then `error` says why).",
        request=ImportSerializer,
        responses={202: ModelVersionSerializer},
    )
    def create(self, request: Request) -> Response:
        asked = ImportSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        version = self._start(asked.validated_data)
        version.refresh_from_db()
        headers = {"Location": f"{request.path}{version.pk}/"}
        return Response(ModelVersionSerializer(version).data, status=status.HTTP_202_ACCEPTED, headers=headers)

    def _start(self, asked: dict[str, Any]) -> ModelVersion:
        name, number, now = asked["model"], asked.get("version"), timezone.now()
        if upload := asked.get("file"):
            temporary = Path(upload.temporary_file_path())
            return services.start_upload(name, temporary, upload.name, version=number, now=now)
        return services.start_import(name, asked["path"], version=number, link=asked["link"], now=now)

    def perform_destroy(self, instance: ModelVersion) -> None:
        services.delete_version(instance)


def register(router: BaseRouter) -> None:
    router.register("models", ModelsViewSet)
    router.register("model-versions", ModelVersionsViewSet)


urlpatterns = blobs.urlpatterns
