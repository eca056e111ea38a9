"""What pages of keys, projects and usage have in common."""

from __future__ import annotations

from django.db.models import Model
from django.http import HttpRequest

from templates.base import PageAdmin


class MemberAdmin(PageAdmin):
    """Pages that project members may open, each narrowed to their own projects."""

    def is_member(self, request: HttpRequest) -> bool:
        user = request.user
        if not hasattr(user, "_is_project_member"):
            user._is_project_member = bool(user.is_active and user.is_staff and user.memberships.exists())
        return user._is_project_member

    def has_module_permission(self, request: HttpRequest) -> bool:
        return super().has_module_permission(request) or self.is_member(request)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return super().has_view_permission(request, obj) or self.is_member(request)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
