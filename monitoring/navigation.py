"""The sidebar of the admin: only what this person may see."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.urls import reverse


def _link(title: str, icon: str, name: str, allowed: bool, mark: str = "") -> dict[str, Any] | None:
    return {"title": title, "icon": icon, "link": reverse(f"admin:{name}"), "mark": mark} if allowed else None


def sidebar(request: HttpRequest) -> list[dict[str, Any]]:
    """Groups of links, in the order of a working day."""
    user = request.user
    can = user.has_perm
    has_projects = can("apikeys.view_project") or user.memberships.exists()
    groups = [
        ("", [_link("Overview", "dashboard", "index", True)]),
        (
            "Serving",
            [
                _link(
                    "Deployments",
                    "rocket_launch",
                    "deployments_deployment_changelist",
                    can("deployments.view_deployment"),
                ),
                _link(
                    "Models",
                    "deployed_code",
                    "models_registry_modelversion_changelist",
                    can("models_registry.view_modelversion"),
                ),
                _link(
                    "Storage",
                    "hard_drive",
                    "models_registry_storagelocation_changelist",
                    can("models_registry.view_storagelocation"),
                ),
                _link(
                    "Hub tokens",
                    "key_vertical",
                    "models_registry_hubtoken_changelist",
                    can("models_registry.view_hubtoken"),
                ),
                _link("Routes", "alt_route", "deployments_route_changelist", can("deployments.view_route")),
                _link("Providers", "cloud", "deployments_provider_changelist", can("deployments.view_provider")),
                _link("Prices", "sell", "deployments_modelprice_changelist", can("deployments.view_modelprice")),
                _link("Playground", "forum", "playground", can("apikeys.add_apikey") or user.memberships.exists()),
            ],
        ),
        (
            "Fleet",
            [
                _link("Servers", "dns", "fleet_server_changelist", can("fleet.view_server")),
                _link("Gateways", "hub", "fleet_gateway_changelist", can("fleet.view_gateway")),
                _link("Join tokens", "add_link", "fleet_jointoken_changelist", can("fleet.view_jointoken")),
            ],
        ),
        (
            "Access",
            [
                _link("Keys", "key", "apikeys_apikey_changelist", has_projects),
                _link("Projects", "group_work", "apikeys_project_changelist", has_projects),
                _link("Usage", "bar_chart", "apikeys_usagehour_changelist", has_projects),
                _link("Management keys", "passkey", "apikeys_managementkey_changelist", True),
            ],
        ),
        (
            "Activity",
            [
                _link("Events", "history", "deployments_event_changelist", can("deployments.view_event")),
                _link("Audit log", "policy", "auditlog_logentry_changelist", can("auditlog.view_logentry")),
                _link(
                    "Tasks",
                    "task_alt",
                    "django_celery_results_taskresult_changelist",
                    can("django_celery_results.view_taskresult"),
                ),
            ],
        ),
        (
            "Administration",
            [
                _link("Users", "person", "auth_user_changelist", can("auth.view_user")),
                _link("Groups", "groups", "auth_group_changelist", can("auth.view_group")),
                _link(
                    "Periodic tasks",
                    "schedule",
                    "django_celery_beat_periodictask_changelist",
                    can("django_celery_beat.view_periodictask"),
                ),
                _link("Sign-in attempts", "lock", "axes_accessattempt_changelist", can("axes.view_accessattempt")),
            ],
        ),
    ]
    return [
        {"title": title, "separator": False, "collapsible": False, "items": shown}
        for title, links in groups
        if (shown := [link for link in links if link])
    ]
