"""Usage: a chart, a table, and the same as a file."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.utils import timezone

from apikeys import usage, usage_page
from apikeys.admin.base import MemberAdmin
from apikeys.models import UsageHour


@admin.register(UsageHour)
class UsageAdmin(MemberAdmin):
    """Usage: a chart, a table, and the same as a file."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        now = timezone.now()
        asked = usage_page.asked_of(request.user, request.GET, now)
        if request.GET.get("format") == "csv":
            return StreamingHttpResponse(
                usage.csv_lines(asked.totals(asked.by, latencies=True)),
                content_type="text/csv",
                headers={"Content-Disposition": f'attachment; filename="usage-{now:%Y-%m-%d}.csv"'},
            )
        return self.page(request, "stokehold/usage.html", "Usage", **usage_page.page_context(asked, request.GET))
