"""The admin's index page. Its fragments come from `monitoring.live.dashboard`."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


def dashboard_callback(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Who sees the fleet gets the dashboard; a project member gets the way to keys and usage."""
    context["sees_fleet"] = request.user.has_perm("fleet.view_server")
    context["title"] = "Overview"
    context["is_fullwidth"] = "1"
    return context
