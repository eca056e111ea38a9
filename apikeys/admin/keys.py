"""Client keys: list, make, change, rotate, revoke."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils import timezone
from django.utils.html import format_html

from apikeys import access, services, usage
from apikeys.admin.base import MemberAdmin
from apikeys.forms import (
    KeyChangeForm,
    KeyForm,
    RotateForm,
    key_initial,
    public_names,
)
from apikeys.models import ApiKey, Project
from templates.base import told
from templates.cells import cell


@admin.register(ApiKey)
class ApiKeyAdmin(MemberAdmin):
    """Client keys."""

    live_topic = "keys"
    add_label = "Create a key"
    intro = "Keys for any OpenAI client. A key is shown once; only a keyed hash of it is kept."
    list_display = ("name", "prefix_text", "project", "status", "used", "today", "models")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter), "project")
    search_fields = ("name", "id", "project__name")
    list_select_related = ("project",)

    def get_queryset(self, request: HttpRequest) -> Any:
        return access.visible_keys(request.user, super().get_queryset(request))

    def get_list_filter(self, request: HttpRequest) -> Any:
        return super().get_list_filter(request) if request.user.has_perm("apikeys.view_apikey") else ()

    def list_title(self) -> str:
        return "Keys"

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        found = getattr(response, "context_data", None) or {}
        if "cl" in found:
            today = access.tokens_today([row.pk for row in found["cl"].result_list], timezone.now())
            for row in found["cl"].result_list:
                row.tokens_used_today = today.get(row.pk)
        return response

    @admin.display(description="Key")
    def prefix_text(self, row: ApiKey) -> str:
        return format_html('<span class="sk-mono">{}…</span>', row.prefix)

    @admin.display(description="Status", ordering="revoked_at")
    def status(self, row: ApiKey) -> str:
        return cell("key", "status", row, now=timezone.now())

    @admin.display(description="Last used", ordering="last_used_at")
    def used(self, row: ApiKey) -> str:
        return cell("key", "used", row)

    @admin.display(description="Today")
    def today(self, row: ApiKey) -> str:
        return cell("key", "today", row, today=getattr(row, "tokens_used_today", None))

    @admin.display(description="Models")
    def models(self, row: ApiKey) -> str:
        return ", ".join(row.allowed_models) if row.allowed_models else "all"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return super().has_add_permission(request) or (
            self.is_member(request) and access.projects_to_make_keys_in(request.user).exists()
        )

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        if super().has_change_permission(request, obj):
            return True
        if not self.is_member(request):
            return False
        return obj is None or access.may_change_keys(request.user, obj.project)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Makes a key; the answer to the POST is the only page that ever shows it."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        owned = access.projects_to_make_keys_in(request.user)
        form = KeyForm(request.POST or None, projects=owned, initial={"project": request.GET.get("project")})
        if request.method == "POST" and form.is_valid():
            asked = form.cleaned_data
            with told(request):
                key, text = services.create_key(
                    project=asked["project"],
                    name=asked["name"],
                    **form.scopes(),
                    actor=request.user.get_username(),
                    now=timezone.now(),
                    **form.limits(),
                )
                return self.made_page(request, key, text)
        has_project = owned.filter(active=True).exists()
        return self.page(request, "stokehold/key_add.html", "Create a key", form=form, has_project=has_project)

    def made_page(self, request: HttpRequest, key: ApiKey, text: str) -> HttpResponse:
        """The only page that ever shows the text of a key."""
        page = self.page(
            request,
            "stokehold/key_made.html",
            f"Key {key.name}",
            key=key,
            text=text,
            model=(key.allowed_models or public_names() or ["MODEL"])[0],
            base_url=settings.GATEWAY_BASE_URL,
        )
        page["Cache-Control"] = "no-store"
        return page

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        form = KeyChangeForm(request.POST or None, initial=key_initial(row), projects=Project.objects.none())
        if request.method == "POST":
            self.must_change(request, row)
            if form.is_valid():
                with told(request):
                    changes = {"name": form.cleaned_data["name"], **form.scopes(), **form.limits()}
                    services.update_key(row, now=timezone.now(), **changes)
                    messages.success(request, f"Key {row.name} saved; gateways have it within a second.")
                    return HttpResponseRedirect(request.path)
        now = timezone.now()
        return self.page(
            request,
            "stokehold/key.html",
            f"Key {row.name}",
            row=row,
            form=form,
            now=now,
            today=access.tokens_today([row.pk], now).get(row.pk),
            by_model=usage.totals(by="model", key=row, since=now - dt.timedelta(days=30)),
            may_change=self.has_change_permission(request, row) and row.revoked_at is None,
        )

    def own_urls(self) -> list[URLPattern]:
        return [
            self.route("<str:object_id>/revoke/", self.revoke, "revoke"),
            self.route("<str:object_id>/rotate/", self.rotate, "rotate"),
        ]

    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Asks for how long the old secret stays good; the answer to the POST shows the new one, once."""
        row = self.row_or_404(request, object_id)
        self.must_change(request, row)
        form = RotateForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            with told(request):
                overlap = dt.timedelta(seconds=int(form.cleaned_data["overlap_s"]))
                actor = request.user.get_username()
                text = services.rotate_key(row, overlap=overlap, now=timezone.now(), actor=actor)
                return self.made_page(request, row, text)
        return self.page(request, "stokehold/key_rotate.html", f"New secret for {row.name}", row=row, form=form)

    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        self.must_change(request, row)
        return self.confirmed(
            request,
            f"Revoke key {row.name}?",
            lambda: services.revoke_key(row, timezone.now(), actor=request.user.get_username()),
            done=f"Key {row.name} is revoked: every gateway refuses it within a second.",
            back=self.url("change", row.pk),
            consequence="Every gateway refuses it within a second, for good. Its usage stays on record.",
            button="Revoke it",
            danger=True,
        )
