"""Addresses of the master: admin, REST API, health, metrics."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.views import defaults
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView, SpectacularRedocView, SpectacularSwaggerView
from rest_framework.routers import DefaultRouter
from rest_framework_simplejwt.views import TokenObtainPairView, TokenRefreshView

import apikeys.api
import deployments.api
import fleet.api
import models_registry.api
import monitoring.api
from config.gateway_docs import GatewayDocs, gateway_schema
from config.health import healthz, readyz
from monitoring import playground
from monitoring.exporter import metrics

_APPS = (fleet.api, models_registry.api, deployments.api, apikeys.api, monitoring.api)

router = DefaultRouter()
for app in _APPS:
    if hasattr(app, "register"):
        app.register(router)

api = [
    path("auth/token", TokenObtainPairView.as_view(), name="token"),
    path("auth/token/refresh", TokenRefreshView.as_view(), name="token-refresh"),
    path("schema", SpectacularAPIView.as_view(), name="schema"),
    path("docs", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path("redoc", SpectacularRedocView.as_view(url_name="schema"), name="redoc"),
    path("gateway-schema", gateway_schema, name="gateway-schema"),
    path("gateway-docs", GatewayDocs.as_view(), name="gateway-docs"),
    *(pattern for app in _APPS for pattern in getattr(app, "urlpatterns", [])),
    *router.urls,
]
urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index"), name="home"),
    path("admin/", ([*playground.urls, *admin.site.urls[0]], "admin", admin.site.name)),
    path("api/v1/", include(api)),
    path("healthz", healthz, name="healthz"),
    path("readyz", readyz, name="readyz"),
    path("metrics", metrics, name="metrics"),
]


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    """A problem document below /api/, else a page."""
    if request.path.startswith("/api/"):
        return _problem(404, "not_found", "There is nothing at this address.", "See /api/v1/docs for what there is.")
    return defaults.page_not_found(request, exception)


def handler500(request: HttpRequest) -> HttpResponse:
    """A problem document below /api/, else a page."""
    if request.path.startswith("/api/"):
        return _problem(500, "internal_error", "The master failed on this request.", "Look at the log of the master.")
    return defaults.server_error(request)


def _problem(status: int, code: str, message: str, remedy: str) -> JsonResponse:
    body = {"type": f"urn:stokehold:problem:{code}", "title": code.replace("_", " "), "status": status}
    body |= {"code": code, "detail": message, "remedy": remedy}
    return JsonResponse(body, status=status, content_type="application/problem+json")
