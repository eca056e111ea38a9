"""REST: servers, gateways, join tokens, and the two addresses that a joining node calls."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import msgspec
from django.http import HttpRequest
from django.urls import path
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema, extend_schema_view
from rest_framework import mixins, viewsets
from rest_framework.decorators import action
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.permissions import BasePermission
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.views import APIView

from fleet import ca, services
from fleet.errors import BadJoinRequest, FleetError
from fleet.join import join_command
from fleet.models import Availability, Gateway, JoinToken, Server
from fleet.serializers import (
    GatewaySerializer,
    JoinReplySerializer,
    JoinRequestSerializer,
    JoinTokenSerializer,
    MadeJoinTokenSerializer,
    NewJoinTokenSerializer,
    ServerSerializer,
)
from fleet.throttles import JoinThrottle
from wire.messages import JoinRequest


class MayChange(BasePermission):
    """Staff with the 'change' permission: an action on a row is a change of it, though it is a POST."""

    def has_permission(self, request: Request, view: Any) -> bool:
        meta = view.queryset.model._meta
        return request.user.is_staff and request.user.has_perm(f"{meta.app_label}.change_{meta.model_name}")


_servers = Server.objects.select_related("state", "desired").defer("desired__payload", "state__observed")


@extend_schema_view(
    partial_update=extend_schema(description="Change the name, the labels, or the rules for model files of a server."),
)
class ServerViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, mixins.UpdateModelMixin, viewsets.GenericViewSet):
    """Machines with an agent. They appear by joining; see join tokens."""

    queryset = _servers
    serializer_class = ServerSerializer
    http_method_names = ["get", "patch", "post", "head", "options"]
    filterset_fields = {"name": ["exact"], "availability": ["exact"], "revoked_at": ["isnull"]}
    search_fields = ["name", "id"]
    ordering_fields = ["name", "created_at"]

    @extend_schema(request=None, responses=ServerSerializer)
    @action(detail=True, methods=["post"], permission_classes=[MayChange])
    def cordon(self, request: Request, pk: str) -> Response:
        """Nothing new is placed there; what runs there stays."""
        return self._set(Availability.CORDONED)

    @extend_schema(request=None, responses=ServerSerializer)
    @action(detail=True, methods=["post"], permission_classes=[MayChange])
    def drain(self, request: Request, pk: str) -> Response:
        """Move away what runs there, without a failed request; nothing new is placed there."""
        return self._set(Availability.DRAINING)

    @extend_schema(request=None, responses=ServerSerializer)
    @action(detail=True, methods=["post"], permission_classes=[MayChange])
    def activate(self, request: Request, pk: str) -> Response:
        """Take a cordoned or drained server back into service."""
        return self._set(Availability.ACTIVE)

    @extend_schema(request=None, responses=ServerSerializer)
    @action(detail=True, methods=["post"], permission_classes=[MayChange])
    def revoke(self, request: Request, pk: str) -> Response:
        """Cut its link at once and for good. The machine can join anew under its name."""
        server = self.get_object()
        services.revoke_server(server, timezone.now())
        return Response(self.get_serializer(server).data)

    def _set(self, availability: Availability) -> Response:
        server = self.get_object()
        services.set_availability(server, availability, timezone.now())
        return Response(self.get_serializer(server).data)


class GatewayViewSet(viewsets.ReadOnlyModelViewSet):
    """Gateways that serve clients. They appear by joining."""

    queryset = Gateway.objects.select_related("state")
    serializer_class = GatewaySerializer
    filterset_fields = {"name": ["exact"], "revoked_at": ["isnull"]}
    search_fields = ["name", "id"]
    ordering_fields = ["name", "created_at"]

    @extend_schema(request=None, responses=GatewaySerializer)
    @action(detail=True, methods=["post"], permission_classes=[MayChange])
    def revoke(self, request: Request, pk: str) -> Response:
        """Cut its link at once and for good."""
        gateway = self.get_object()
        services.revoke_gateway(gateway, timezone.now())
        return Response(self.get_serializer(gateway).data)


class JoinTokenViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, mixins.DestroyModelMixin, viewsets.GenericViewSet
):
    """Single-use permissions to join. Deleting one makes it useless."""

    queryset = JoinToken.objects.select_related("created_by")
    serializer_class = JoinTokenSerializer
    filterset_fields = {"role": ["exact"], "used_at": ["isnull"]}
    ordering_fields = ["created_at", "expires_at"]

    @extend_schema(request=NewJoinTokenSerializer, responses={201: MadeJoinTokenSerializer})
    def create(self, request: Request) -> Response:
        """Make a token. It is shown in this answer only, with the command to run on the new machine."""
        wanted = NewJoinTokenSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        fields = wanted.validated_data
        row, token = services.issue_join_token(
            role=fields["role"],
            ttl=dt.timedelta(seconds=fields["ttl_s"]),
            note=fields["note"],
            created_by=request.user,
            now=timezone.now(),
        )
        shown = {"token": token, "command": join_command(row.role, token)}
        return Response(JoinTokenSerializer(row).data | shown, status=201)


class _PemRenderer(BaseRenderer):
    media_type = "application/x-pem-file"
    format = "pem"
    charset = "utf-8"

    def render(self, data: Any, accepted_media_type: str | None = None, context: Any = None) -> bytes:
        return (data if isinstance(data, str) else json.dumps(data)).encode()


class _FirstRenderer(BaseContentNegotiation):
    """A node takes what it is given."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class JoinView(APIView):
    """A node with a join token becomes a server or a gateway."""

    authentication_classes: list[Any] = []
    permission_classes: list[Any] = []
    throttle_classes = [JoinThrottle]
    renderer_classes = [JSONRenderer]
    content_negotiation_class = _FirstRenderer

    @extend_schema(
        operation_id="join",
        auth=[],
        request=JoinRequestSerializer,
        responses={201: JoinReplySerializer, 403: OpenApiResponse(description="The join token is refused.")},
    )
    def post(self, request: Request) -> Response:
        """Use up a join token: the node's certificate, the CA, and the key that signs its desired states."""
        try:
            reply = services.join_node(_read_join_request(request._request), timezone.now())
        except FleetError:
            JoinThrottle.count_failure(request, self)
            raise
        return Response(msgspec.to_builtins(reply), status=201)


class JoinCaView(APIView):
    """The CA, for a node that is about to join: it compares the fingerprint with its token's."""

    authentication_classes: list[Any] = []
    permission_classes: list[Any] = []
    renderer_classes = [_PemRenderer]
    content_negotiation_class = _FirstRenderer

    @extend_schema(operation_id="join_ca", auth=[], responses={(200, "application/x-pem-file"): OpenApiTypes.STR})
    def get(self, request: Request) -> Response:
        """The CA's certificate, PEM."""
        return Response(ca.ca_pem())


def _read_join_request(request: HttpRequest) -> JoinRequest:
    try:
        return msgspec.json.decode(request.body, type=JoinRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadJoinRequest(
            f"the request is not understood: {error}", remedy="Use an agent of the master's release."
        ) from error


def register(router: BaseRouter) -> None:
    """Put this app's rows below `/api/v1/`."""
    router.register("servers", ServerViewSet)
    router.register("gateways", GatewayViewSet)
    router.register("join-tokens", JoinTokenViewSet)


urlpatterns = [
    path("join", JoinView.as_view(), name="join"),
    path("join/ca", JoinCaView.as_view(), name="join-ca"),
]
