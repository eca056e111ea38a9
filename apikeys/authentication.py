"""Who asks the REST API: a management key, a token got by password, or the session of a page."""

from __future__ import annotations

from typing import Any

from auditlog.context import auditlog_value
from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication

from apikeys.management_keys import PREFIX, find_management_key
from apikeys.models import ManagementKey


class BadManagementKey(AuthenticationFailed):
    default_detail = "This management key is not valid: it is unknown, revoked, expired, or not for this network."
    default_code = "invalid_management_key"
    remedy = "Look at Management keys in the admin, and make another one."


class ReadOnlyKey(PermissionDenied):
    default_detail = "This management key may only read."
    default_code = "read_only_key"
    remedy = "Use a management key that may change things, or a token of POST /api/v1/auth/token."


class ManagementKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer stk-mgmt-...`: acts as the key's person, or reads only."""

    def authenticate(self, request: Request) -> tuple[Any, ManagementKey] | None:
        """None when there is no management key. Raises BadManagementKey, ReadOnlyKey."""
        scheme, _, text = get_authorization_header(request).partition(b" ")
        text = text.strip()
        if scheme.lower() != b"bearer" or not text.startswith(PREFIX.encode()):
            return None
        address = request.META.get("REMOTE_ADDR") or ""
        key = find_management_key(text.decode("latin-1"), address, timezone.now())
        if key is None:
            raise BadManagementKey
        if key.read_only and request.method not in SAFE_METHODS:
            raise ReadOnlyKey
        _note_actor(key.user)
        return key.user, key

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class TokenAuthentication(JWTAuthentication):
    """`Authorization: Bearer` with a JSON web token of POST /api/v1/auth/token."""

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        found = super().authenticate(request)
        if found is not None:
            _note_actor(found[0])
        return found


def _note_actor(user: Any) -> None:
    """The audit log's middleware runs before anybody is known here: it knows sessions only."""
    try:
        auditlog_value.get()["actor"] = user
    except LookupError:  # outside of a request
        return


class _KeyScheme(OpenApiAuthenticationExtension):
    target_class = "apikeys.authentication.ManagementKeyAuthentication"
    name = "managementKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "stk-mgmt-..."}


class _TokenScheme(OpenApiAuthenticationExtension):
    target_class = "apikeys.authentication.TokenAuthentication"
    name = "jwtAuth"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
