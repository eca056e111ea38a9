"""REST API of storage locations, of the copies in them, and of the work on copies."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, QuerySet
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter

from models_registry.location_models import StorageJob, StorageLocation, VersionCopy
from models_registry.locations import copies, jobs, services
from models_registry.locations.serializers import CopySerializer, JobSerializer, LocationSerializer, TargetSerializer
from models_registry.models import ModelVersion


@extend_schema_view(
    list=extend_schema(summary="List storage locations"),
    retrieve=extend_schema(summary="Show a storage location"),
    create=extend_schema(summary="Add a storage location", description="A store of ours begins empty."),
    partial_update=extend_schema(
        summary="Change a storage location",
        description="Another `path` is accepted when the location's files, its marker too, were brought there before.",
    ),
    destroy=extend_schema(summary="Remove a storage location that no version lies in"),
)
class LocationsViewSet(viewsets.ModelViewSet):
    queryset = StorageLocation.objects.all()
    serializer_class = LocationSerializer
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    filterset_fields = ["name", "kind", "reachable", "read_only"]
    search_fields = ["name", "path"]
    ordering_fields = ["name", "created_at", "used_bytes", "free_bytes"]

    def get_queryset(self) -> QuerySet[StorageLocation]:
        return services.locations().annotate(version_count=Count("copies")).order_by("-builtin", "name")

    def perform_create(self, serializer: LocationSerializer) -> None:
        made = services.add_location(**serializer.validated_data, now=timezone.now())
        serializer.instance = self.get_queryset().get(pk=made.pk)

    def perform_update(self, serializer: LocationSerializer) -> None:
        services.change_location(serializer.instance, **serializer.validated_data)

    def perform_destroy(self, instance: StorageLocation) -> None:
        services.remove_location(instance)

    @extend_schema(summary="Look whether it is there, and how full", request=None, responses=LocationSerializer)
    @action(detail=True, methods=["post"])
    def look(self, request: Request, pk: str) -> Response:
        services.look_at(self.get_object(), timezone.now())
        return Response(LocationSerializer(self.get_object()).data)

    @extend_schema(
        summary="Take what is at its path for this location",
        description="After its marker file was lost. Look first: a disk that is not mounted would be taken for empty.",
        request=None,
        responses=LocationSerializer,
    )
    @action(detail=True, methods=["post"])
    def mark(self, request: Request, pk: str) -> Response:
        services.mark_location(self.get_object(), timezone.now())
        return Response(LocationSerializer(self.get_object()).data)

    @extend_schema(
        summary="Move all versions that lie here elsewhere",
        request=TargetSerializer,
        responses={202: JobSerializer(many=True)},
    )
    @action(detail=True, methods=["post"], url_path="move-all", pagination_class=None, filterset_fields=[])
    def move_all(self, request: Request, pk: str) -> Response:
        started = jobs.start_moves(self.get_object(), _target(request), now=timezone.now())
        return Response(JobSerializer(started, many=True).data, status=status.HTTP_202_ACCEPTED)


_VERSION = OpenApiParameter("version_pk", OpenApiTypes.INT, OpenApiParameter.PATH, description="Id of the version.")


@extend_schema_view(
    list=extend_schema(summary="List where a version lies", parameters=[_VERSION]),
    retrieve=extend_schema(summary="Show a copy of a version", parameters=[_VERSION]),
    destroy=extend_schema(summary="Delete a copy, if another whole one stays", parameters=[_VERSION]),
)
class CopiesViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, mixins.DestroyModelMixin, viewsets.GenericViewSet
):
    queryset = VersionCopy.objects.all()
    serializer_class = CopySerializer
    filterset_fields = ["state", "in_place"]
    search_fields = ["location__name"]
    ordering_fields = ["location__name", "verified_at", "created_at"]

    def get_queryset(self) -> QuerySet[VersionCopy]:
        if getattr(self, "swagger_fake_view", False):
            return VersionCopy.objects.none()
        return copies.copies_of(self._version()).order_by("location__name", "pk")

    def _version(self) -> ModelVersion:
        return get_object_or_404(ModelVersion.objects.select_related("model"), pk=self.kwargs["version_pk"])

    def perform_destroy(self, instance: VersionCopy) -> None:
        copies.delete_copy(instance)

    @extend_schema(
        summary="Copy a version to another location",
        parameters=[_VERSION],
        request=TargetSerializer,
        responses={202: JobSerializer},
    )
    def create(self, request: Request, version_pk: str) -> Response:
        return _accepted(jobs.start_copy(self._version(), _target(request), now=timezone.now()))

    @extend_schema(
        summary="Move a copy to another location",
        parameters=[_VERSION],
        request=TargetSerializer,
        responses={202: JobSerializer},
    )
    @action(detail=True, methods=["post"])
    def move(self, request: Request, version_pk: str, pk: str) -> Response:
        return _accepted(jobs.start_move(self.get_object(), _target(request), now=timezone.now()))

    @extend_schema(
        summary="Read a copy again, and repair it", parameters=[_VERSION], request=None, responses={202: JobSerializer}
    )
    @action(detail=True, methods=["post"])
    def verify(self, request: Request, version_pk: str, pk: str) -> Response:
        return _accepted(jobs.start_verify(self.get_object(), now=timezone.now()))


@extend_schema_view(
    list=extend_schema(summary="List work on copies: copying, moving, verifying"),
    retrieve=extend_schema(summary="Show how far some work on a copy is"),
)
class StorageJobsViewSet(viewsets.ReadOnlyModelViewSet):
    queryset = StorageJob.objects.select_related("version__model", "location", "source").order_by("-pk")
    serializer_class = JobSerializer
    filterset_fields = ["kind", "state", "version"]
    search_fields = ["version__model__name", "location__name"]
    ordering_fields = ["queued_at", "ended_at"]

    @extend_schema(summary="End some work; the copies stay as they were", request=None, responses=JobSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        jobs.cancel_job(self.get_object())
        return Response(JobSerializer(self.get_object()).data)


def _target(request: Request) -> StorageLocation:
    asked = TargetSerializer(data=request.data)
    asked.is_valid(raise_exception=True)
    found: dict[str, Any] = asked.validated_data
    return found["location"]


def _accepted(job: StorageJob) -> Response:
    return Response(JobSerializer(job).data, status=status.HTTP_202_ACCEPTED)


def register(router: BaseRouter) -> None:
    router.register("storage-locations", LocationsViewSet)
    router.register(r"model-versions/(?P<version_pk>[^/.]+)/copies", CopiesViewSet, basename="versioncopy")
    router.register("storage-jobs", StorageJobsViewSet)
