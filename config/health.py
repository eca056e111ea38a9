"""`/healthz`: this process answers. `/readyz`: it can do its work; when not, the reasons."""

from __future__ import annotations

import time

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from config.checks import schema_problem
from deployments.models import Leader
from wire.versions import RELEASE

_SCHEMA_GOOD_FOR_S = 30.0
_schema_good_at: float | None = None


@require_safe
@never_cache
def healthz(request: HttpRequest) -> JsonResponse:
    """Always 200 while the process serves; touches nothing else."""
    return JsonResponse({"status": "ok", "release": RELEASE})


@require_safe
@never_cache
def readyz(request: HttpRequest) -> JsonResponse:
    """200, or 503 with a sentence for each thing that is missing."""
    checks = {"database": _database(), "controller": ""}
    if not checks["database"]:
        checks["controller"] = _controller()
    reasons = {name: reason for name, reason in checks.items() if reason}
    body = {"ready": not reasons, "release": RELEASE, "reasons": reasons}
    return JsonResponse(body, status=503 if reasons else 200)


def _database() -> str:
    global _schema_good_at
    if _schema_good_at is not None and time.monotonic() - _schema_good_at < _SCHEMA_GOOD_FOR_S:
        return _answers()
    problem = schema_problem()
    _schema_good_at = None if problem else time.monotonic()
    return problem or ""


def _answers() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, InterfaceError) as error:
        return f"The database does not answer: {error}".strip()
    return ""


def _controller() -> str:
    leader = Leader.objects.filter(name="controller").first()
    if leader is None or leader.ticked_at is None:
        return "No controller has run yet: start `./stokehold controller`."
    age_s = (timezone.now() - leader.ticked_at).total_seconds()
    if age_s > 2 * settings.LEADER_LEASE_S:
        return f"The controller's last pass ended {age_s:.0f} s ago: look at its log (`./stokehold logs controller`)."
    return ""
