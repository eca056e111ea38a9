"""REST: deployments, revisions, instances, events and engines."""

from __future__ import annotations

import re
from typing import Any

import django_filters
from django.db.models import QuerySet
from django.urls import path
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers, viewsets
from rest_framework.decorators import action
from rest_framework.permissions import IsAdminUser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.views import APIView

from deployments import engines, logs, services
from deployments.errors import DeploymentError, InvalidSpec
from deployments.models import Deployment, Event, Instance, Phase, Revision
from deployments.routing import api as routing_api
from deployments.serializers import (
    DeploymentChangeSerializer,
    DeploymentCreateSerializer,
    DeploymentSerializer,
    EngineSerializer,
    EventSerializer,
    InstanceSerializer,
    LogSerializer,
    PreviewSerializer,
    RevisionSerializer,
    RollbackSerializer,
    ScaleSerializer,
    SpecSerializer,
)
from fleet.api import MayChange

_LINES = OpenApiParameter("lines", int, description="Last lines to give, at most 2000.", default=200)
_IF_MATCH = OpenApiParameter("If-Match", str, OpenApiParameter.HEADER, description="ETag as it was read.")
_IF_MATCH_REQUIRED = OpenApiParameter(
    "If-Match", str, OpenApiParameter.HEADER, required=True, description="ETag as it was read, or *."
)
_CONFLICTS = {
    412: OpenApiResponse(OpenApiTypes.OBJECT, description="It was changed since it was read."),
    428: OpenApiResponse(OpenApiTypes.OBJECT, description="If-Match is missing."),
}
_LOGS_OF = 5  # instances whose lines one request of a deployment's logs asks for


class PreconditionRequired(DeploymentError):
    code = "precondition_required"
    status = 428
    remedy = "Send `If-Match` with the ETag of what you read, or `*` to overwrite whatever is there."


class BadQuery(DeploymentError):
    code = "invalid_query"
    remedy = "Correct the query named in the message."


class DeploymentViewSet(viewsets.GenericViewSet):
    """What should serve under a public model name."""

    queryset = Deployment.objects.filter(deleted_at__isnull=True).select_related(
        "revision__model_version__model", "alias__model"
    )
    serializer_class = DeploymentSerializer
    filterset_fields = {"name": ["exact", "contains"], "running": ["exact"]}
    search_fields = ["name", "description"]
    ordering_fields = ["name", "created_at", "updated_at"]

    def list(self, request: Request) -> Response:
        """All deployments, each with its status."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        context = self.get_serializer_context() | {"statuses": services.statuses(page)}
        return self.get_paginated_response(DeploymentSerializer(page, many=True, context=context).data)

    def retrieve(self, request: Request, pk: str) -> Response:
        """One deployment; its ETag is what a change of it must name."""
        return self._answer(self.get_object())

    @extend_schema(request=DeploymentCreateSerializer, responses={201: DeploymentSerializer})
    def create(self, request: Request) -> Response:
        """Deploy a model version under a public name."""
        fields = _read(DeploymentCreateSerializer, request)
        made = services.create_deployment(**fields, actor=_actor(request), now=timezone.now())
        return self._answer(made, status=201)

    @extend_schema(
        request=DeploymentChangeSerializer,
        responses={200: DeploymentSerializer, **_CONFLICTS},
        parameters=[_IF_MATCH_REQUIRED],
    )
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change it; a changed spec becomes a new revision, which rolls out without a lost request."""
        version = _if_match(request, required=True)
        fields = _read(DeploymentChangeSerializer, request)
        deployment = self.get_object()
        if fields.pop("name", deployment.name) != deployment.name:
            raise InvalidSpec({"name": "cannot be changed: keys and clients use it"})
        return self._answer(
            services.update_deployment(
                deployment, if_version=version, actor=_actor(request), now=timezone.now(), **fields
            )
        )

    @extend_schema(responses={204: None, **_CONFLICTS}, parameters=[_IF_MATCH_REQUIRED])
    def destroy(self, request: Request, pk: str) -> Response:
        """Stop it once its requests are done, and delete it."""
        version = _if_match(request, required=True)
        services.delete(self.get_object(), if_version=version, actor=_actor(request), now=timezone.now())
        return Response(status=204)

    @extend_schema(request=None, responses=DeploymentSerializer, parameters=[_IF_MATCH])
    @action(detail=True, methods=["post"], permission_classes=[MayChange])
    def start(self, request: Request, pk: str) -> Response:
        """Run it with the replicas it had."""
        return self._act(request, services.start)

    @extend_schema(request=None, responses=DeploymentSerializer, parameters=[_IF_MATCH])
    @action(detail=True, methods=["post"], permission_classes=[MayChange])
    def stop(self, request: Request, pk: str) -> Response:
        """End its instances once their requests are done."""
        return self._act(request, services.stop)

    @extend_schema(request=None, responses={200: DeploymentSerializer, **_CONFLICTS}, parameters=[_IF_MATCH])
    @action(detail=True, methods=["post"], permission_classes=[MayChange])
    def restart(self, request: Request, pk: str) -> Response:
        """Replace each of its instances by a new one, without losing requests."""
        return self._act(request, services.restart)

    @extend_schema(request=ScaleSerializer, responses=DeploymentSerializer, parameters=[_IF_MATCH])
    @action(detail=True, methods=["post"], permission_classes=[MayChange])
    def scale(self, request: Request, pk: str) -> Response:
        """Set how many instances should serve."""
        return self._act(request, services.scale, _read(ScaleSerializer, request)["replicas"])

    @extend_schema(request=RollbackSerializer, responses=DeploymentSerializer, parameters=[_IF_MATCH])
    @action(detail=True, methods=["post"], permission_classes=[MayChange])
    def rollback(self, request: Request, pk: str) -> Response:
        """Roll out the spec of an earlier revision, as a new one."""
        return self._act(request, services.rollback, _read(RollbackSerializer, request)["revision"])

    @extend_schema(request=SpecSerializer, responses=PreviewSerializer)
    @action(detail=False, methods=["post"])
    def preview(self, request: Request) -> Response:
        """What deploying this would need, where it would go, and why not elsewhere. Changes nothing."""
        found = services.preview(**_read(SpecSerializer, request), now=timezone.now())
        return Response(PreviewSerializer(found).data)

    @extend_schema(responses=EventSerializer(many=True), filters=False)
    @action(detail=True, methods=["get"])
    def events(self, request: Request, pk: str) -> Response:
        """What happened to it, newest first."""
        page = self.paginate_queryset(Event.objects.filter(deployment=self.get_object()))
        return self.get_paginated_response(EventSerializer(page, many=True).data)

    @extend_schema(responses=LogSerializer(many=True), parameters=[_LINES], filters=False)
    @action(detail=True, methods=["get"], pagination_class=None)
    def logs(self, request: Request, pk: str) -> Response:
        """Last lines of its newest instances that have not ended, at most five."""
        rows = Instance.objects.filter(deployment=self.get_object()).exclude(phase=Phase.ENDED)
        newest = list(rows.select_related("server").order_by("-created_at")[:_LOGS_OF])
        tails = logs.tail_many(newest, _lines(request))
        return Response([_log(row, found) for row, found in zip(newest, tails, strict=True)])

    def _act(self, request: Request, verb: Any, *arguments: Any) -> Response:
        deployment = self.get_object()
        version = _if_match(request, required=False)
        return self._answer(verb(deployment, *arguments, if_version=version, actor=_actor(request), now=timezone.now()))

    def _answer(self, deployment: Deployment, status: int = 200) -> Response:
        fresh = self.get_queryset().get(pk=deployment.pk)
        headers = {"ETag": f'"{fresh.version}"'}
        return Response(DeploymentSerializer(fresh).data, status=status, headers=headers)


class RevisionViewSet(viewsets.ReadOnlyModelViewSet):
    """Immutable specs of deployments."""

    queryset = Revision.objects.select_related("deployment", "model_version__model").order_by("-id")
    serializer_class = RevisionSerializer
    filterset_fields = {"deployment": ["exact"], "number": ["exact"], "model_version": ["exact"]}
    ordering_fields = ["id", "number", "created_at"]


class InstanceFilter(django_filters.FilterSet):
    live = django_filters.BooleanFilter(method="filter_live", label="false: only ended ones; true: only others.")

    class Meta:
        model = Instance
        fields = {"deployment": ["exact"], "server": ["exact"], "phase": ["exact"], "state": ["exact"]}

    def filter_live(self, rows: QuerySet[Instance], name: str, value: bool) -> QuerySet[Instance]:
        return rows.exclude(phase=Phase.ENDED) if value else rows.filter(phase=Phase.ENDED)


class InstanceViewSet(viewsets.ReadOnlyModelViewSet):
    """Engine processes: what is wanted of each and what its agent sees."""

    queryset = Instance.objects.select_related("deployment", "server", "revision").order_by("-created_at", "id")
    serializer_class = InstanceSerializer
    filterset_class = InstanceFilter
    search_fields = ["id", "deployment__name", "server__name"]
    ordering_fields = ["created_at", "state_since"]

    @extend_schema(responses=LogSerializer, parameters=[_LINES])
    @action(detail=True, methods=["get"])
    def logs(self, request: Request, pk: str) -> Response:
        """Last lines of its output, live from the agent; kept lines of earlier attempts where that is not to be had."""
        instance = self.get_object()
        return Response(_log(instance, logs.tail(instance, _lines(request))))


class EventFilter(django_filters.FilterSet):
    since = django_filters.IsoDateTimeFilter(field_name="at", lookup_expr="gte")

    class Meta:
        model = Event
        fields = {
            "deployment": ["exact"],
            "instance": ["exact"],
            "server": ["exact"],
            "kind": ["exact", "startswith"],
            "severity": ["exact"],
        }


class EventViewSet(viewsets.ReadOnlyModelViewSet):
    """What happened, newest first."""

    queryset = Event.objects.order_by("-at", "-id")
    serializer_class = EventSerializer
    filterset_class = EventFilter
    search_fields = ["message"]
    ordering_fields = ["at"]


class EnginesView(APIView):
    """Engines that a deployment can run on, with the JSON Schema of their parameters."""

    permission_classes = [IsAdminUser]

    @extend_schema(operation_id="engines_list", responses=EngineSerializer(many=True))
    def get(self, request: Request) -> Response:
        return Response([_engine(name) for name in engines.names()])


def _engine(name: str) -> dict[str, Any]:
    adapter = engines.get(name)
    return {
        "name": name,
        "title": adapter.title,
        "program": adapter.program,
        "image": adapter.image(0),
        "parameters": adapter.schema.json_schema(),
    }


def _read(serializer: type[serializers.Serializer], request: Request) -> dict[str, Any]:
    wanted = serializer(data=request.data)
    wanted.is_valid(raise_exception=True)
    known = {*wanted.fields, *DeploymentSerializer.Meta.fields, "csrfmiddlewaretoken"}  # a body read may be sent back
    if unknown := sorted(set(request.data) - known):
        raise serializers.ValidationError({key: ["There is no such field."] for key in unknown})
    return {key: dict(value) if key == "placement" else value for key, value in wanted.validated_data.items()}


def _if_match(request: Request, *, required: bool) -> int | None:
    """Version that `If-Match` names; None: any. Raises PreconditionRequired, BadQuery."""
    header = request.headers.get("If-Match", "").strip()
    if not header:
        if required:
            raise PreconditionRequired("this change wants an If-Match header")
        return None
    if header == "*":
        return None
    match = re.fullmatch(r'(?:W/)?"?(\d{1,18})"?', header)
    if match is None:
        raise BadQuery(f"If-Match {header!r} is not an ETag of a deployment")
    return int(match.group(1))


def _actor(request: Request) -> str:
    return request.user.get_username()


def _lines(request: Request) -> int:
    text = request.query_params.get("lines", "200")
    if not text.isdecimal() or not 1 <= int(text) <= logs.MAX_LINES:
        raise BadQuery(f"lines must be a whole number from 1 to {logs.MAX_LINES}")
    return int(text)


def _log(instance: Instance, found: logs.Tail) -> dict[str, Any]:
    server = instance.server.name if instance.server else None
    return {
        "instance": instance.pk,
        "server": server,
        "live": found.live,
        "note": found.note,
        "lines": list(found.lines),
    }


def register(router: BaseRouter) -> None:
    """Put this app's rows below `/api/v1/`."""
    router.register("deployments", DeploymentViewSet)
    router.register("revisions", RevisionViewSet)
    router.register("instances", InstanceViewSet)
    router.register("events", EventViewSet)
    routing_api.register(router)


urlpatterns = [path("engines/", EnginesView.as_view(), name="engines")]
