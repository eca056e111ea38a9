"""REST API of projects, keys and usage. Staff within their permissions; others within their projects (`access`)."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict

from django.db.models import Count, QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import path
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import generics, mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter

from apikeys import access, services, usage
from apikeys.errors import MadeByKey
from apikeys.management_keys import create_management_key, revoke_management_key, visible_management_keys
from apikeys.models import ApiKey, ManagementKey, Membership, ModelQuota, Project
from apikeys.serializers import (
    KeySerializer,
    ManagementKeySerializer,
    MembershipSerializer,
    ModelQuotaSerializer,
    NewKeySerializer,
    NewManagementKeySerializer,
    ProjectSerializer,
    QuotaWarningSerializer,
    RotationSerializer,
    UsageQuerySerializer,
    UsageTotalSerializer,
)
from apikeys.snippets import snippets


def _require(allowed: bool, what: str) -> None:
    if not allowed:
        raise PermissionDenied(f"You may not {what}.")


@extend_schema_view(
    list=extend_schema(summary="List projects"),
    retrieve=extend_schema(summary="Show a project"),
    create=extend_schema(summary="Make a project"),
    partial_update=extend_schema(summary="Change a project or its quota"),
    destroy=extend_schema(summary="Delete a project that was never used"),
)
class ProjectsViewSet(viewsets.ModelViewSet):
    queryset = Project.objects.annotate(key_count=Count("keys")).prefetch_related("model_quotas").order_by("name")
    serializer_class = ProjectSerializer
    permission_classes = [IsAuthenticated]
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    filterset_fields = ["name", "active"]
    search_fields = ["name", "description"]
    ordering_fields = ["name", "created_at"]

    def get_queryset(self) -> QuerySet[Project]:
        return super().get_queryset().filter(pk__in=access.visible_projects(self.request.user).values("pk"))

    def perform_create(self, serializer: ProjectSerializer) -> None:
        _require(access.has_staff_permission(self.request.user, "add_project"), "make projects")
        serializer.save()

    def perform_update(self, serializer: ProjectSerializer) -> None:
        _require(access.has_staff_permission(self.request.user, "change_project"), "change projects")
        serializer.save()

    def perform_destroy(self, instance: Project) -> None:
        _require(access.has_staff_permission(self.request.user, "delete_project"), "delete projects")
        services.delete_project(instance)

    @extend_schema(methods=["GET"], summary="List members", responses=MembershipSerializer(many=True))
    @extend_schema(
        methods=["POST"], summary="Give a person a role", request=MembershipSerializer, responses=MembershipSerializer
    )
    @action(detail=True, methods=["get", "post"], pagination_class=None, filterset_fields=None, search_fields=None)
    def members(self, request: Request, pk: str) -> Response:
        project = self.get_object()
        if request.method == "GET":
            rows = project.memberships.select_related("user").order_by("user__username")
            return Response(MembershipSerializer(rows, many=True).data)
        _require(access.may_change_members(request.user, project), "choose this project's members")
        asked = MembershipSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        membership = services.set_member(project, asked.validated_data["user"], asked.validated_data["role"])
        return Response(MembershipSerializer(membership).data)

    @extend_schema(
        summary="Take a person out of a project", parameters=[OpenApiParameter("user_id", OpenApiTypes.INT, "path")]
    )
    @action(detail=True, methods=["delete"], url_path=r"members/(?P<user_id>\d+)")
    def member(self, request: Request, pk: str, user_id: str) -> Response:
        project = self.get_object()
        _require(access.may_change_members(request.user, project), "choose this project's members")
        services.remove_member(get_object_or_404(Membership, project=project, user_id=user_id))
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(methods=["GET"], summary="List quotas by model", responses=ModelQuotaSerializer(many=True))
    @extend_schema(
        methods=["POST"],
        summary="Limit the use of a model, in place of the limits before",
        request=ModelQuotaSerializer,
        responses=ModelQuotaSerializer,
    )
    @action(
        detail=True,
        methods=["get", "post"],
        url_path="model-quotas",
        pagination_class=None,
        filterset_fields=None,
        search_fields=None,
    )
    def model_quotas(self, request: Request, pk: str) -> Response:
        project = self.get_object()
        if request.method == "GET":
            return Response(ModelQuotaSerializer(project.model_quotas.order_by("model"), many=True).data)
        _require(access.has_staff_permission(request.user, "change_project"), "change quotas")
        asked = ModelQuotaSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        quota = services.set_model_quota(project, **asked.validated_data)
        return Response(ModelQuotaSerializer(quota).data)

    @extend_schema(
        summary="Lift the limits of a model", parameters=[OpenApiParameter("quota_id", OpenApiTypes.INT, "path")]
    )
    @action(detail=True, methods=["delete"], url_path=r"model-quotas/(?P<quota_id>\d+)")
    def model_quota(self, request: Request, pk: str, quota_id: str) -> Response:
        project = self.get_object()
        _require(access.has_staff_permission(request.user, "change_project"), "change quotas")
        services.remove_model_quota(get_object_or_404(ModelQuota, project=project, pk=quota_id))
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        summary="List limits used up to 80 % and more, newest first", responses=QuotaWarningSerializer(many=True)
    )
    @action(detail=True, methods=["get"], pagination_class=None, filterset_fields=None, search_fields=None)
    def warnings(self, request: Request, pk: str) -> Response:
        project = self.get_object()
        _require(access.projects_with_visible_usage(request.user).filter(pk=project.pk).exists(), "see its usage")
        return Response(QuotaWarningSerializer(project.quota_warnings.all()[:200], many=True).data)


class KeyFilter(filters.FilterSet):
    project = filters.UUIDFilter(field_name="project_id")
    revoked = filters.BooleanFilter(field_name="revoked_at", lookup_expr="isnull", exclude=True)

    class Meta:
        model = ApiKey
        fields = ["project", "revoked", "name"]


@extend_schema_view(
    list=extend_schema(summary="List keys"),
    retrieve=extend_schema(summary="Show a key, without its secret"),
    partial_update=extend_schema(summary="Change a key's name, models, expiry or quota"),
)
class KeysViewSet(
    mixins.CreateModelMixin,
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.UpdateModelMixin,
    viewsets.GenericViewSet,
):
    queryset = ApiKey.objects.select_related("project").order_by("-created_at", "pk")
    serializer_class = KeySerializer
    permission_classes = [IsAuthenticated]
    http_method_names = ["get", "post", "patch", "head", "options"]
    filterset_class = KeyFilter
    search_fields = ["id", "name", "project__name"]
    ordering_fields = ["created_at", "name", "last_used_at", "expires_at"]

    def get_queryset(self) -> QuerySet[ApiKey]:
        return access.visible_keys(self.request.user, super().get_queryset())

    @extend_schema(summary="Make a key", request=KeySerializer, responses={201: NewKeySerializer})
    def create(self, request: Request) -> Response:
        asked = self.get_serializer(data=request.data)
        asked.is_valid(raise_exception=True)
        project = asked.validated_data["project"]
        _require(access.may_change_keys(request.user, project, "add_apikey"), "make keys of this project")
        key = asked.save()
        answer = {**asked.data, "key": asked.text, **asdict(snippets(key, asked.text))}
        headers = {"Location": f"{request.path}{key.pk}/", "Cache-Control": "no-store"}
        return Response(answer, status=status.HTTP_201_CREATED, headers=headers)

    def perform_update(self, serializer: KeySerializer) -> None:
        _require(access.may_change_keys(self.request.user, serializer.instance.project), "change keys of this project")
        serializer.save()

    @extend_schema(summary="Revoke a key, at once and for good", request=None, responses=KeySerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        key = self.get_object()
        _require(access.may_change_keys(request.user, key.project), "revoke keys of this project")
        services.revoke_key(key, timezone.now(), actor=request.user.get_username())
        return Response(self.get_serializer(key).data)

    @extend_schema(
        summary="Give a key a new secret; the one before stays good for a while",
        request=RotationSerializer,
        responses=NewKeySerializer,
    )
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, pk: str) -> Response:
        key = self.get_object()
        _require(access.may_change_keys(request.user, key.project), "rotate keys of this project")
        asked = RotationSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        overlap = dt.timedelta(seconds=asked.validated_data["overlap_s"])
        actor = request.user.get_username()
        text = services.rotate_key(key, overlap=overlap, now=timezone.now(), actor=actor)
        answer = {**self.get_serializer(key).data, "key": text, **asdict(snippets(key, text))}
        return Response(answer, headers={"Cache-Control": "no-store"})


@extend_schema_view(
    list=extend_schema(summary="List management keys: your own, or all for those who manage people"),
    retrieve=extend_schema(summary="Show a management key, without its secret"),
)
class ManagementKeysViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """Credentials for this API. A key is no way to make another."""

    queryset = ManagementKey.objects.order_by("-created_at", "pk")
    serializer_class = ManagementKeySerializer
    permission_classes = [IsAuthenticated]
    http_method_names = ["get", "post", "head", "options"]
    filterset_fields = ["read_only"]
    search_fields = ["id", "name", "user__username"]
    ordering_fields = ["created_at", "name", "last_used_at", "expires_at"]

    def get_queryset(self) -> QuerySet[ManagementKey]:
        return visible_management_keys(self.request.user).order_by("-created_at", "pk")

    @extend_schema(
        summary="Make a management key", request=ManagementKeySerializer, responses={201: NewManagementKeySerializer}
    )
    def create(self, request: Request) -> Response:
        if isinstance(request.auth, ManagementKey):
            raise MadeByKey("A management key cannot make management keys.")
        asked = self.get_serializer(data=request.data)
        asked.is_valid(raise_exception=True)
        key, text = create_management_key(**asked.validated_data, by=request.user, now=timezone.now())
        headers = {"Location": f"{request.path}{key.pk}/", "Cache-Control": "no-store"}
        return Response({**self.get_serializer(key).data, "key": text}, status=status.HTTP_201_CREATED, headers=headers)

    @extend_schema(summary="Revoke a management key, at once and for good", request=None)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        key = revoke_management_key(self.get_object(), timezone.now(), actor=request.user.get_username())
        return Response(self.get_serializer(key).data)


class _UsageView(generics.GenericAPIView):
    permission_classes = [IsAuthenticated]
    serializer_class = UsageTotalSerializer
    filter_backends = []

    def totals(self, request: Request) -> list[usage.UsageTotal]:
        asked = UsageQuerySerializer(data=request.query_params)
        asked.is_valid(raise_exception=True)
        return usage.totals(**asked.asked(), within=access.projects_with_visible_usage(request.user), latencies=True)


class UsageView(_UsageView):
    @extend_schema(
        summary="Sum usage",
        parameters=[UsageQuerySerializer],
        responses=UsageTotalSerializer(many=True),
        operation_id="usage_list",
    )
    def get(self, request: Request) -> Response:
        page = self.paginate_queryset(self.totals(request))
        return self.get_paginated_response(UsageTotalSerializer(page, many=True).data)


class UsageExportView(_UsageView):
    pagination_class = None

    @extend_schema(
        summary="Export usage as CSV",
        parameters=[UsageQuerySerializer],
        responses={(200, "text/csv"): OpenApiTypes.STR},
        operation_id="usage_export",
    )
    def get(self, request: Request) -> HttpResponse:
        lines = usage.csv_lines(self.totals(request))
        headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
        return HttpResponse("".join(lines), content_type="text/csv; charset=utf-8", headers=headers)


def register(router: BaseRouter) -> None:
    router.register("projects", ProjectsViewSet)
    router.register("keys", KeysViewSet)
    router.register("management-keys", ManagementKeysViewSet)


urlpatterns = [
    path("usage/", UsageView.as_view(), name="usage"),
    path("usage/export", UsageExportView.as_view(), name="usage-export"),
]
