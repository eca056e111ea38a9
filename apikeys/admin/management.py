"""Management keys: list, make, revoke. Everybody of the staff has their own."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils import timezone
from django.utils.html import format_html

from apikeys.forms import ManagementKeyForm
from apikeys.management_keys import create_management_key, revoke_management_key, visible_management_keys
from apikeys.models import ManagementKey
from templates.base import PageAdmin, told
from templates.words import since, tone_of


@admin.register(ManagementKey)
class ManagementKeyAdmin(PageAdmin):
    """Credentials for the REST API; who may see them is `visible_management_keys`'s to say."""

    add_label = "Create a management key"
    intro = (
        "For scripts and continuous integration: a key for the REST API that acts as you, or only reads what you may "
        "see. It is shown once. Keys for models are under Keys."
    )
    list_display = ("name", "prefix_text", "user", "may", "status", "expires", "used", "revoke_link")
    list_display_links = None
    list_filter = (("revoked_at", admin.EmptyFieldListFilter), "read_only")
    search_fields = ("name", "id", "user__username")

    def get_queryset(self, request: HttpRequest) -> Any:
        return visible_management_keys(request.user).order_by("-created_at", "pk")

    def list_title(self) -> str:
        return "Management keys"

    @admin.display(description="Key")
    def prefix_text(self, row: ManagementKey) -> str:
        return format_html('<span class="sk-mono">{}…</span>', row.prefix)

    @admin.display(description="May")
    def may(self, row: ManagementKey) -> str:
        return "read" if row.read_only else "read and change"

    @admin.display(description="Status")
    def status(self, row: ManagementKey) -> str:
        word = _status(row)
        return format_html('<span class="sk-badge sk-{}"><i aria-hidden="true"></i>{}</span>', tone_of(word), word)

    @admin.display(description="Expires", ordering="expires_at")
    def expires(self, row: ManagementKey) -> str:
        return f"{row.expires_at:%Y-%m-%d %H:%M}" if row.expires_at else "never"

    @admin.display(description="Last used", ordering="last_used_at")
    def used(self, row: ManagementKey) -> str:
        return since(row.last_used_at, timezone.now())

    @admin.display(description="")
    def revoke_link(self, row: ManagementKey) -> str:
        if row.revoked_at is not None:
            return ""
        return format_html(
            '<a class="sk-button sk-danger" href="{}" data-test="revoke-{}">Revoke</a>',
            self.url("revoke", row.pk),
            row.pk,
        )

    def has_module_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_active and request.user.is_staff)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.has_module_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.has_module_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.has_module_permission(request)  # the queryset holds what may be revoked, and nothing else

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Makes a key; the answer to the POST is the only page that ever shows it."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = ManagementKeyForm(request.POST or None, user=request.user)
        if request.method == "POST" and form.is_valid():
            with told(request):
                key, text = create_management_key(**form.cleaned_data, by=request.user, now=timezone.now())
                page = self.page(
                    request,
                    "stokehold/management_key_made.html",
                    f"Management key {key.name}",
                    text=text,
                    key=key,
                    example=_example(request, text),
                )
                page["Cache-Control"] = "no-store"
                return page
        return self.page(request, "stokehold/management_key_add.html", "Create a management key", form=form)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """A key is what it was made as: there is nothing to change."""
        self.row_or_404(request, object_id)
        return HttpResponseRedirect(self.url("changelist"))

    def own_urls(self) -> list[URLPattern]:
        return [self.route("<str:object_id>/revoke/", self.revoke, "revoke")]

    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        return self.confirmed(
            request,
            f"Revoke management key {row.name}?",
            lambda: revoke_management_key(row, timezone.now(), actor=request.user.get_username()),
            done=f"Management key {row.name} is revoked.",
            back=self.url("changelist"),
            consequence="The REST API refuses it from now on, for good.",
            button="Revoke it",
            danger=True,
        )


def _status(row: ManagementKey) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if row.expires_at is not None and row.expires_at <= timezone.now():
        return "expired"
    return "active"


def _example(request: HttpRequest, text: str) -> str:
    address = request.build_absolute_uri("/api/v1/deployments/")
    return f'curl -H "Authorization: Bearer {text}" {address}'
