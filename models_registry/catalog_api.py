"""REST API of what people say of versions: notes, tags, licences accepted, dangerous files allowed."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response

from models_registry import catalog, words
from models_registry.acting import actor_of
from models_registry.compare import compare
from models_registry.models import ModelVersion
from models_registry.serializers import (
    AllowSerializer,
    AnnotateSerializer,
    CompareQuerySerializer,
    ComparisonSerializer,
    ModelVersionDetailSerializer,
)


class MayAllowPickle(BasePermission):
    """Staff that may let engines load files which can run code: administrators."""

    def has_permission(self, request: Request, view: Any) -> bool:
        user = request.user
        return bool(user and user.is_staff and user.has_perm("models_registry.allow_pickle"))


class CatalogActions:
    """Further verbs of the view set of versions."""

    @extend_schema(
        summary="Change the notes or tags of a version",
        request=AnnotateSerializer,
        responses=ModelVersionDetailSerializer,
    )
    def partial_update(self, request: Request, pk: str) -> Response:
        asked = AnnotateSerializer(data=request.data)
        row = self.get_object()
        asked.is_valid(raise_exception=True)
        catalog.annotate(row, **asked.validated_data)
        return self._detail(row)

    @extend_schema(summary="Accept the licence of a version", request=None, responses=ModelVersionDetailSerializer)
    @action(detail=True, methods=["post"], url_path="accept-license")
    def accept_license(self, request: Request, pk: str) -> Response:
        row = self.get_object()
        catalog.accept_license(row, by=actor_of(request), now=timezone.now())
        return self._detail(row)

    @extend_schema(
        summary="Let engines load files of a version that can run code",
        request=AllowSerializer,
        responses=ModelVersionDetailSerializer,
    )
    @action(detail=True, methods=["post"], url_path="allow-pickle", permission_classes=[MayAllowPickle])
    def allow_pickle(self, request: Request, pk: str) -> Response:
        asked = AllowSerializer(data=request.data)
        row = self.get_object()
        asked.is_valid(raise_exception=True)
        if asked.validated_data["allowed"]:
            catalog.allow_pickle(row, by=actor_of(request), now=timezone.now())
        else:
            catalog.forbid_pickle(row, by=actor_of(request))
        return self._detail(row)

    @extend_schema(
        summary="Compare a version with another one",
        parameters=[CompareQuerySerializer],
        responses=ComparisonSerializer,
        filters=False,
    )
    @action(detail=True, methods=["get"])
    def compare(self, request: Request, pk: str) -> Response:
        row = self.get_object()
        asked = CompareQuerySerializer(data=request.query_params)
        asked.is_valid(raise_exception=True)
        return Response(ComparisonSerializer(compare(row, asked.validated_data["with"])).data)

    def paginate_queryset(self, queryset: Any) -> Any:
        """What the rows of a page are in words, asked for all of them at once."""
        page = super().paginate_queryset(queryset)
        self.words = words.sentences(page or [], timezone.now())
        return page

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "words": getattr(self, "words", None)}

    def _detail(self, row: ModelVersion) -> Response:
        return Response(ModelVersionDetailSerializer(row, context=self.get_serializer_context()).data)
