"""REST: the overview."""

from __future__ import annotations

import dataclasses
from typing import Any

from django.urls import path
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from monitoring import overview as glance


class AlertSerializer(serializers.Serializer):
    severity = serializers.ChoiceField(choices=["error", "warning"])
    message = serializers.CharField()
    url = serializers.CharField(allow_blank=True)


class OverviewSerializer(serializers.Serializer):
    servers_total = serializers.IntegerField()
    servers_online = serializers.IntegerField()
    gateways_online = serializers.IntegerField()
    deployments_total = serializers.IntegerField()
    deployments_ready = serializers.IntegerField()
    instances = serializers.DictField(child=serializers.IntegerField())
    requests_per_minute = serializers.FloatField()
    tokens_per_minute = serializers.FloatField()
    controller_age_s = serializers.FloatField(allow_null=True)
    alerts = AlertSerializer(many=True)


class OverviewView(APIView):
    """The whole installation at a glance."""

    @extend_schema(operation_id="overview", responses=OverviewSerializer, tags=["overview"])
    def get(self, request: Request) -> Response:
        if not request.user.has_perm("fleet.view_server"):
            raise PermissionDenied
        return Response(OverviewSerializer(dataclasses.asdict(glance.overview(timezone.now()))).data)


def register(router: Any) -> None:
    """Nothing here has rows of its own to list."""


urlpatterns = [path("overview", OverviewView.as_view(), name="overview")]
