"""Projects: members, limits, quotas by model."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Q
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern
from django.utils import timezone

from apikeys import access, services, usage
from apikeys.admin.base import MemberAdmin
from apikeys.forms import (
    MemberForm,
    ModelQuotaForm,
    ProjectForm,
    limits_in_words,
    project_initial,
)
from apikeys.models import Membership, ModelQuota, Project
from templates.base import told
from templates.cells import cell


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
        return limits_in_words(row) or "none"

    def may_run(self, request: HttpRequest, row: Project) -> bool:
        """Owners run their project's members; its limits are the fleet's to set."""
        return access.may_change_members(request.user, row)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = ProjectForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            with told(request):
                row = services.create_project(**form.settings(), **form.limits())
                messages.success(request, f"Project {row.name} is made.")
                return HttpResponseRedirect(self.url("change", row.pk))
        return self.page(request, "stokehold/project_add.html", "Create a project", form=form)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        may_change = self.has_change_permission(request, row)
        form = ProjectForm(request.POST or None, initial=project_initial(row))
        if request.method == "POST":
            self.must_change(request, row)
            if form.is_valid():
                with told(request):
                    services.update_project(row, **form.settings(), **form.limits())
                    messages.success(request, f"Project {row.name} saved.")
                    return HttpResponseRedirect(request.path)
        now = timezone.now()
        used = usage.used_since(now)
        return self.page(
            request,
            "stokehold/project.html",
            row.name,
            row=row,
            form=form,
            member_form=MemberForm(),
            members=row.memberships.select_related("user").order_by("user__username"),
            keys=row.keys.all()[:50],
            used=used.projects.get(row.pk, usage.NOTHING),
            quotas=[
                (quota, limits_in_words(quota), used.models.get((row.pk, quota.model), usage.NOTHING))
                for quota in row.model_quotas.all()
            ],
            warnings=row.quota_warnings.all()[:10],
            now=now,
            may_change=may_change,
            may_run=self.may_run(request, row),
            may_delete=request.user.has_perm("apikeys.delete_project"),
        )

    def own_urls(self) -> list[URLPattern]:
        return [
            self.route("<str:object_id>/members/", self.add_member, "add_member"),
            self.route("<str:object_id>/members/<int:member>/remove/", self.remove_member, "remove_member"),
            self.route("<str:object_id>/quotas/add/", self.quota_page, "add_quota"),
            self.route("<str:object_id>/quotas/<int:quota>/", self.quota_page, "quota"),
            self.route("<str:object_id>/quotas/<int:quota>/remove/", self.remove_quota, "remove_quota"),
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

    def quota_page(self, request: HttpRequest, object_id: str, quota: int | None = None) -> HttpResponse:
        """Limits of the project's use of one model."""
        row = self.row_or_404(request, object_id)
        self.must_change(request, row)
        found = None if quota is None else get_object_or_404(ModelQuota, pk=quota, project=row)
        form = ModelQuotaForm(request.POST or None, quota=found)
        if request.method == "POST" and form.is_valid():
            with told(request):
                name = found.model if found is not None else form.cleaned_data["model"]
                services.set_model_quota(row, name, **form.limits())
                messages.success(request, f"{row.name} is limited in its use of {name}.")
                return HttpResponseRedirect(self.url("change", row.pk))
        title = f"Limits of {found.model} for {row.name}" if found is not None else f"Limit a model for {row.name}"
        return self.page(request, "stokehold/project_quota.html", title, row=row, form=form, quota=found)

    def remove_quota(self, request: HttpRequest, object_id: str, quota: int) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        self.must_change(request, row)
        found = get_object_or_404(ModelQuota, pk=quota, project=row)
        return self.confirmed(
            request,
            f"Lift the limits of {found.model} for {row.name}?",
            lambda: services.remove_model_quota(found),
            done=f"{found.model} has no limits of its own for {row.name} any more.",
            back=self.url("change", row.pk),
            consequence="The limits of the project and of its keys go on to hold.",
            button="Lift them",
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
