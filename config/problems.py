"""RFC 9457 problem documents for every error of the REST API: what happened, and what to do next."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import PermissionDenied
from django.core.exceptions import ValidationError as DjangoValidationError
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from wire.errors import Problem

_REMEDIES = {
    400: "Correct the fields named in `errors` and send it again; /api/v1/docs shows what is expected.",
    401: "Send `Authorization: Bearer ...` with a management key (made in the admin) or a token of POST "
    "/api/v1/auth/token.",
    403: "Ask an administrator for the permission, or use another account.",
    404: "Look at the list for what exists.",
    405: "See the `Allow` header for what this address takes.",
    412: "Read it again, look at what changed, and repeat with the new ETag.",
    415: "Send JSON with `Content-Type: application/json`.",
    429: "Wait as long as the `Retry-After` header says.",
}


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF hook. Errors of our services carry `status`, `code`, `message`, `remedy`; others are translated."""
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied()
    elif isinstance(error, DjangoValidationError):
        error = exceptions.ValidationError(error.message_dict if hasattr(error, "error_dict") else error.messages)
    if isinstance(error, exceptions.APIException):
        set_rollback()
        return _from_api_exception(error)
    if isinstance(error, Problem):
        set_rollback()
        return problem(error.status, error.code, error.message, error.remedy, **error.details)
    return None


def problem(status: int, code: str, message: str, remedy: str = "", **more: Any) -> Response:
    """A problem document as a DRF response."""
    body = {"type": f"urn:stokehold:problem:{code}", "title": code.replace("_", " "), "status": status}
    body |= {"code": code, "detail": message, "remedy": remedy or _REMEDIES.get(status, ""), **more}
    return Response(body, status=status, content_type="application/problem+json")


def _from_api_exception(error: exceptions.APIException) -> Response:
    status = error.status_code
    more: dict[str, Any] = {}
    code = error.default_code
    message = str(error.default_detail)
    if isinstance(error, exceptions.ValidationError):
        more["errors"] = error.detail
        code, message = "invalid", "The request has wrong or missing fields."
    elif isinstance(error.detail, str):
        message, code = str(error.detail), error.detail.code or code
    elif isinstance(error.detail, dict) and "detail" in error.detail:
        message, code = str(error.detail["detail"]), str(error.detail.get("code", code))
    response = problem(status, str(code), message, getattr(error, "remedy", ""), **more)
    if getattr(error, "auth_header", None):
        response["WWW-Authenticate"] = error.auth_header
    if getattr(error, "wait", None):
        response["Retry-After"] = str(int(error.wait))
    return response
