"""Who may use the REST API: staff, each within the model permissions that the admin also checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_framework.permissions import DjangoModelPermissions
from rest_framework.request import Request

if TYPE_CHECKING:  # the views load this module by its name in the settings: it cannot load them
    from rest_framework.views import APIView


_VIEW = "%(app_label)s.view_%(model_name)s"


class StaffModelPermissions(DjangoModelPermissions):
    """Staff only; reading wants 'view', so a viewer sees and changes nothing."""

    perms_map = {**DjangoModelPermissions.perms_map, "GET": [_VIEW], "HEAD": [_VIEW], "OPTIONS": [_VIEW]}

    def has_permission(self, request: Request, view: APIView) -> bool:
        user = request.user
        if not (user and user.is_authenticated and user.is_staff):
            return False
        if not hasattr(view, "get_queryset") and getattr(view, "queryset", None) is None:
            return True  # a view without rows of its own checks for itself
        return super().has_permission(request, view)
