"""REST API of models and their versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import path
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.views import APIView

from models_registry import aliases_api, blobs, removal, services
from models_registry.acting import actor_of
from models_registry.archive.views import tar_response
from models_registry.catalog_api import CatalogActions
from models_registry.fetching import services as fetching
from models_registry.fetching.policy import policy, set_policy
from models_registry.hub import imports
from models_registry.hub import services as hub
from models_registry.import_serializers import DownloadPolicySerializer, PrioritySerializer
from models_registry.importing import FETCHED, start_fetch
from models_registry.locations import api as locations
from models_registry.models import Format, HubToken, Model, ModelVersion, VersionState
from models_registry.pins_api import PinsViewSet
from models_registry.serializers import (
    HubHitSerializer,
    HubModelSerializer,
    HubQuerySerializer,
    HubTokenSerializer,
    ImportSerializer,
    LimitSerializer,
    ModelSerializer,
    ModelVersionDetailSerializer,
    ModelVersionSerializer,
)
from models_registry.tags import models_tagged, versions_tagged
from models_registry.tenants import usable_tokens
from models_registry.uploads import StoreUploadHandler


class ModelFilter(filters.FilterSet):
    tag = filters.CharFilter(method="tagged")

    class Meta:
        model = Model
        fields = ["name"]

    def tagged(self, rows: QuerySet[Model], name: str, value: str) -> QuerySet[Model]:
        return models_tagged(rows, value)


@extend_schema_view(
    list=extend_schema(summary="List models"),
    retrieve=extend_schema(summary="Show a model"),
    create=extend_schema(summary="Make a model without versions"),
    partial_update=extend_schema(summary="Change a model's description, notes or tags"),
    destroy=extend_schema(summary="Delete a model without versions"),
)
class ModelsViewSet(aliases_api.AliasMoves, viewsets.ModelViewSet):
    queryset = Model.objects.annotate(version_count=Count("versions")).order_by("name")
    serializer_class = ModelSerializer
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    filterset_class = ModelFilter
    search_fields = ["name", "description", "notes", "tags"]
    ordering_fields = ["name", "created_at"]

    def perform_destroy(self, instance: Model) -> None:
        removal.delete_model(instance)


class VersionFilter(filters.FilterSet):
    model = filters.CharFilter(field_name="model__name", help_text="Name of the model.")
    format = filters.ChoiceFilter(choices=Format.choices)
    state = filters.ChoiceFilter(choices=VersionState.choices)
    architecture = filters.CharFilter()
    digest = filters.CharFilter()
    tag = filters.CharFilter(method="tagged", help_text="Of the version, or of its model.")
    modality = filters.CharFilter(lookup_expr="icontains", help_text="text, image, audio, embedding or reranker.")
    flagged = filters.BooleanFilter(help_text="true: files of it can run code.")

    def tagged(self, rows: QuerySet[ModelVersion], name: str, value: str) -> QuerySet[ModelVersion]:
        return versions_tagged(rows, value)

    class Meta:
        model = ModelVersion
        fields = ["model", "format", "state", "architecture", "digest", "quantization", "version", "license"]


@extend_schema_view(
    list=extend_schema(summary="List model versions"),
    retrieve=extend_schema(summary="Show a model version with its files"),
    destroy=extend_schema(summary="Delete a model version and the files nobody else needs"),
)
class ModelVersionsViewSet(
    CatalogActions, mixins.ListModelMixin, mixins.RetrieveModelMixin, mixins.DestroyModelMixin, viewsets.GenericViewSet
):
    queryset = ModelVersion.objects.select_related("model", "job").order_by("model__name", "-created_at", "-pk")
    serializer_class = ModelVersionSerializer
    parser_classes = [JSONParser, MultiPartParser, FormParser]
    filterset_class = VersionFilter
    search_fields = ["model__name", "version", "architecture", "quantization", "source", "notes", "tags", "model__tags"]
    ordering_fields = ["created_at", "size_bytes", "parameter_count", "model__name", "version"]

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """Uploads go to a file whatever their size; this must be said before anything reads the body."""
        if request.method == "POST":
            request.upload_handlers = [StoreUploadHandler(request)]
        return super().initialize_request(request, *args, **kwargs)

    def get_queryset(self) -> QuerySet[ModelVersion]:
        versions = super().get_queryset()
        return versions.defer("manifest", "scan") if self.action == "list" else versions

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
        asked = ImportSerializer(data=request.data, context={"request": request})
        asked.is_valid(raise_exception=True)
        version = self._start(asked.validated_data)
        version.refresh_from_db()
        headers = {"Location": f"{request.path}{version.pk}/"}
        return Response(ModelVersionSerializer(version).data, status=status.HTTP_202_ACCEPTED, headers=headers)

    def _start(self, asked: dict[str, Any]) -> ModelVersion:
        name = asked.get("model")
        more = {"version": asked.get("version"), "by": actor_of(self.request), "now": timezone.now()}
        if any(source in asked for source in FETCHED):
            return start_fetch(asked, more["now"], more["by"])
        more["location"] = asked.get("location")
        if upload := asked.get("file"):
            temporary = Path(upload.temporary_file_path())
            return services.start_upload(name, temporary, upload.name, **more)
        how = {field: asked[field] for field in ("link", "in_place")}
        return services.start_import(name, asked["path"], **how, **more)

    def perform_destroy(self, instance: ModelVersion) -> None:
        removal.delete_version(instance, by=actor_of(self.request))

    @extend_schema(
        summary="Download a version as a tar that another master imports",
        responses={(200, "application/x-tar"): OpenApiTypes.BINARY},
    )
    @action(detail=True, methods=["get"])
    def export(self, request: Request, pk: str) -> HttpResponseBase:
        return tar_response(request, self.get_object())

    @extend_schema(summary="Move an import before or behind others", request=PrioritySerializer)
    @action(detail=True, methods=["post"])
    def prioritize(self, request: Request, pk: str) -> Response:
        asked = PrioritySerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        return self._told(lambda row: fetching.prioritize_import(row, asked.validated_data["priority"]))

    @extend_schema(summary="Pause the fetch of an import", request=None, responses=ModelVersionSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        return self._told(lambda row: fetching.pause_import(row))

    @extend_schema(summary="Go on with a fetch that was paused", request=None, responses=ModelVersionSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        return self._told(lambda row: fetching.pause_import(row, paused=False))

    @extend_schema(summary="End an import; what was fetched is kept for a week", request=None)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        return self._told(fetching.cancel_import)

    @extend_schema(summary="Limit how fast an import is fetched", request=LimitSerializer)
    @action(detail=True, methods=["post"])
    def limit(self, request: Request, pk: str) -> Response:
        asked = LimitSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        return self._told(lambda row: fetching.limit_import(row, asked.validated_data["bytes_per_second"]))

    def _told(self, verb: Callable[[ModelVersion], None]) -> Response:
        row = self.get_object()
        verb(row)
        return Response(ModelVersionSerializer(self.get_queryset().get(pk=row.pk)).data)


class MayImport(BasePermission):
    """Staff that may import models: looking at a Hub is done with this installation's tokens."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        user = request.user
        return bool(user and user.is_staff and user.has_perm("models_registry.add_modelversion"))


class HubModelsView(APIView):
    """What the Hub has."""

    permission_classes = [MayImport]

    @extend_schema(
        operation_id="hub_models_list",
        summary="Search the Hub",
        parameters=[HubQuerySerializer],
        responses=HubHitSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        asked = _asked(request)
        hits = imports.hub_of(asked.get("token")).search(asked.get("search", ""))
        return Response(HubHitSerializer(hits, many=True).data)


class HubModelView(APIView):
    """One repository."""

    permission_classes = [MayImport]

    @extend_schema(
        operation_id="hub_models_retrieve",
        summary="Show a repository of the Hub, and what of it would be fetched",
        parameters=[HubQuerySerializer],
        responses=HubModelSerializer,
    )
    def get(self, request: Request) -> Response:
        asked = _asked(request)
        patterns = [one.strip() for one in asked["patterns"].split(",") if one.strip()]
        model, choice = imports.look_up(asked.get("repo", ""), asked["revision"], patterns, asked.get("token"))
        taken = set(choice.paths)
        files = [
            {"path": one.path, "size": one.size, "sha256": one.sha256, "taken": one.path in taken}
            for one in model.files
        ]
        about = {"reason": choice.reason, "files": files, "size_bytes": sum(f["size"] for f in files if f["taken"])}
        told = {name: getattr(model, name) for name in ("repo", "commit", "gated", "private", "license")}
        return Response(HubModelSerializer({**told, **about}).data)


def _asked(request: Request) -> dict[str, Any]:
    asked = HubQuerySerializer(data=request.query_params, context={"request": request})
    asked.is_valid(raise_exception=True)
    return asked.validated_data


@extend_schema_view(
    list=extend_schema(summary="List tokens for the Hub"),
    retrieve=extend_schema(summary="Show a token for the Hub, without its text"),
    create=extend_schema(summary="Keep a token for the Hub"),
    destroy=extend_schema(summary="Forget a token for the Hub"),
)
class HubTokensViewSet(viewsets.ModelViewSet):
    queryset = HubToken.objects.order_by("name")
    serializer_class = HubTokenSerializer
    http_method_names = ["get", "post", "delete", "head", "options"]
    search_fields = ["name"]

    def get_queryset(self) -> QuerySet[HubToken]:
        return usable_tokens(self.request.user).order_by("name")

    def perform_create(self, serializer: HubTokenSerializer) -> None:
        serializer.instance = hub.save_token(**serializer.validated_data)

    def perform_destroy(self, instance: HubToken) -> None:
        hub.delete_token(instance)


class MayReadImports(BasePermission):
    """Staff that may see models; to change something, that may import them."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        action = "view" if request.method in SAFE_METHODS else "add"
        user = request.user
        return bool(user and user.is_staff and user.has_perm(f"models_registry.{action}_modelversion"))


class DownloadPolicyView(APIView):
    """How fast all fetches together may be, by the time of day."""

    permission_classes = [MayReadImports]

    @extend_schema(summary="Show the bandwidth schedule", responses=DownloadPolicySerializer)
    def get(self, request: Request) -> Response:
        return Response(DownloadPolicySerializer(policy()).data)

    @extend_schema(
        summary="Set the bandwidth schedule", request=DownloadPolicySerializer, responses=DownloadPolicySerializer
    )
    def put(self, request: Request) -> Response:
        asked = DownloadPolicySerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        return Response(DownloadPolicySerializer(set_policy(**asked.validated_data)).data)


def register(router: BaseRouter) -> None:
    router.register("models", ModelsViewSet)
    router.register("model-versions", ModelVersionsViewSet)
    router.register("hub-tokens", HubTokensViewSet)
    router.register("pins", PinsViewSet)
    aliases_api.register(router)
    locations.register(router)


urlpatterns = [
    *blobs.urlpatterns,
    path("download-policy/", DownloadPolicyView.as_view(), name="download-policy"),
    path("hub/models/", HubModelsView.as_view(), name="hub-models"),
    path("hub/model/", HubModelView.as_view(), name="hub-model"),
]
