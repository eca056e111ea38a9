"""Pages of projects, keys and usage: glue around `apikeys.services` and `apikeys.usage`."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Model, Q
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.urls import URLPattern
from django.utils import timezone
from django.utils.html import format_html

from apikeys import access, services, usage, usage_page
from apikeys.forms import KeyChangeForm, KeyForm, MemberForm, ProjectForm, public_names
from apikeys.models import ApiKey, Membership, Project, UsageHour
from apikeys.services import LIMIT_FIELDS
from templates.base import PageAdmin, told
from templates.cells import cell


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


# ------------------------------------------------------------------------------------------------ keys


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
                    allowed_models=asked["allowed_models"] or None,
                    expires_at=asked["expires_at"],
                    actor=request.user.get_username(),
                    now=timezone.now(),
                    **form.limits(),
                )
                model = (key.allowed_models or public_names() or ["MODEL"])[0]
                page = self.page(
                    request,
                    "stokehold/key_made.html",
                    f"Key {key.name}",
                    key=key,
                    text=text,
                    model=model,
                    base_url=settings.GATEWAY_BASE_URL,
                )
                page["Cache-Control"] = "no-store"
                return page
        has_project = owned.filter(active=True).exists()
        return self.page(request, "stokehold/key_add.html", "Create a key", form=form, has_project=has_project)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        initial = {name: getattr(row, name) for name in (*LIMIT_FIELDS, "name", "allowed_models", "expires_at")}
        form = KeyChangeForm(request.POST or None, initial=initial, projects=Project.objects.none())
        if request.method == "POST":
            self.must_change(request, row)
            if form.is_valid():
                with told(request):
                    changes = {name: form.cleaned_data[name] for name in ("name", "expires_at")} | form.limits()
                    changes["allowed_models"] = form.cleaned_data["allowed_models"] or None
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
        return [self.route("<str:object_id>/revoke/", self.revoke, "revoke")]

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


# ------------------------------------------------------------------------------------------------ projects


@admin.register(Project)
class ProjectAdmin(MemberAdmin):
    """Tenants: members, limits, keys and usage."""

    add_label = "Create a project"
    intro = "A project has members, limits that all its keys share, and its own usage."
    list_display = ("name", "state", "member_count", "key_count", "limits_text", "made")
    list_filter = ("active",)
    search_fields = ("name", "description")

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = super().get_queryset(request).filter(pk__in=access.visible_projects(request.user).values("pk"))
        return rows.annotate(
            members=Count("memberships", distinct=True),
            live_keys=Count("keys", filter=Q(keys__revoked_at__isnull=True), distinct=True),
        )

    @admin.display(description="State", ordering="active")
    def state(self, row: Project) -> str:
        return cell("project", "state", row)

    @admin.display(description="Made", ordering="created_at")
    def made(self, row: Project) -> str:
        return cell("project", "made", row)

    @admin.display(description="Members", ordering="members")
    def member_count(self, row: Project) -> int:
        return row.members

    @admin.display(description="Live keys", ordering="live_keys")
    def key_count(self, row: Project) -> int:
        return row.live_keys

    @admin.display(description="Limits")
    def limits_text(self, row: Project) -> str:
        set_ones = [name for name in LIMIT_FIELDS if getattr(row, name) is not None]
        return ", ".join(f"{getattr(row, name):,} {name.replace('_', ' ')}" for name in set_ones) or "none"

    def may_run(self, request: HttpRequest, row: Project) -> bool:
        """Owners run their project's members; its limits are the fleet's to set."""
        return access.may_change_members(request.user, row)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = ProjectForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            asked = form.cleaned_data
            with told(request):
                row = services.create_project(
                    asked["name"], description=asked["description"], active=asked["active"], **form.limits()
                )
                messages.success(request, f"Project {row.name} is made.")
                return HttpResponseRedirect(self.url("change", row.pk))
        return self.page(request, "stokehold/project_add.html", "Create a project", form=form)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        may_change = self.has_change_permission(request, row)
        initial = {name: getattr(row, name) for name in (*LIMIT_FIELDS, "name", "description", "active")}
        form = ProjectForm(request.POST or None, initial=initial)
        if request.method == "POST":
            self.must_change(request, row)
            if form.is_valid():
                with told(request):
                    services.update_project(row, **form.cleaned_data)
                    messages.success(request, f"Project {row.name} saved.")
                    return HttpResponseRedirect(request.path)
        now = timezone.now()
        return self.page(
            request,
            "stokehold/project.html",
            row.name,
            row=row,
            form=form,
            member_form=MemberForm(),
            members=row.memberships.select_related("user").order_by("user__username"),
            keys=row.keys.all()[:50],
            used=usage.tokens_since(now).projects.get(row.pk, usage.NOTHING),
            now=now,
            may_change=may_change,
            may_run=self.may_run(request, row),
            may_delete=request.user.has_perm("apikeys.delete_project"),
        )

    def own_urls(self) -> list[URLPattern]:
        return [
            self.route("<str:object_id>/members/", self.add_member, "add_member"),
            self.route("<str:object_id>/members/<int:member>/remove/", self.remove_member, "remove_member"),
            self.route("<str:object_id>/delete/", self.delete_page, "delete_page"),
        ]

    def add_member(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        if not self.may_run(request, row):
            raise PermissionDenied
        form = MemberForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            with told(request):
                member = services.set_member(row, form.cleaned_data["user"], form.cleaned_data["role"])
                messages.success(request, f"{member.user} is {member.role} of {row.name}.")
        elif request.method == "POST":
            messages.error(request, "Choose a person and a role.")
        return HttpResponseRedirect(self.url("change", row.pk))

    def remove_member(self, request: HttpRequest, object_id: str, member: int) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        if not self.may_run(request, row):
            raise PermissionDenied
        membership = Membership.objects.select_related("user").filter(pk=member, project=row).first()
        if membership is None:
            raise Http404
        return self.confirmed(
            request,
            f"Remove {membership.user} from {row.name}?",
            lambda: services.remove_member(membership),
            done=f"{membership.user} is no longer a member of {row.name}.",
            back=self.url("change", row.pk),
            consequence="They no longer see its keys and usage. Keys that they made go on working.",
            button="Remove",
            danger=True,
        )

    def delete_page(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        if not request.user.has_perm("apikeys.delete_project"):
            raise PermissionDenied
        back = self.url("change", row.pk)
        if request.method == "POST":
            name = row.name
            with told(request):
                services.delete_project(row)
                messages.success(request, f"Project {name} is deleted.")
                back = self.url("changelist")
            return HttpResponseRedirect(back)
        return self.confirmed(
            request,
            f"Delete project {row.name}?",
            lambda: None,
            done="",
            back=back,
            consequence="Its keys stop working within a second. A project with usage on record is not deleted: "
            "switch it off instead.",
            button="Delete it",
            danger=True,
        )


# ------------------------------------------------------------------------------------------------ usage


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
                usage.csv_lines(asked.totals(asked.by)),
                content_type="text/csv",
                headers={"Content-Disposition": f'attachment; filename="usage-{now:%Y-%m-%d}.csv"'},
            )
        return self.page(request, "stokehold/usage.html", "Usage", **usage_page.page_context(asked, request.GET))
