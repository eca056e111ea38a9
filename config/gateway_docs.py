"""The gateway's OpenAPI document on the master, and a page that shows it; gateways serve the document themselves."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularSwaggerView
from rest_framework.request import Request
from rest_framework.response import Response

from gateway.openapi import document


@require_safe
def gateway_schema(request: HttpRequest) -> JsonResponse:
    """As the gateway serves it at /openapi.json."""
    return JsonResponse(document(settings.GATEWAY_BASE_URL.rstrip("/").removesuffix("/v1")))


class GatewayDocs(SpectacularSwaggerView):
    """Swagger over it, to read only: the gateway is another origin, and the playground is there to try it."""

    url_name = "gateway-schema"
    title = "Stokehold gateway"

    @extend_schema(exclude=True)
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        answer = super().get(request, *args, **kwargs)
        shown = json.loads(answer.data["settings"]) | {"supportedSubmitMethods": [], "persistAuthorization": False}
        answer.data["settings"] = json.dumps(shown)
        return answer
