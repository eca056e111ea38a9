"""Pages of the admin: the locations, and where a version lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from models_registry.location_models import UNDER_WAY, LocationKind, StorageJob, StorageLocation, VersionCopy
from models_registry.locations import copies, jobs, services
from models_registry.models import ModelVersion
from templates.base import PageAdmin, told
from templates.cells import render_cell
from templates.forms import PageForm

MOST_SHOWN = 200
_MAY_WORK, _MAY_DELETE = "models_registry.add_versioncopy", "models_registry.delete_versioncopy"


class TargetForm(PageForm):
    """Where to."""

    location = forms.ModelChoiceField(StorageLocation.objects.none(), to_field_name="name", empty_label=None)

    def __init__(self, *args: Any, but_for: list[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["location"].queryset = services.locations().filter(read_only=False).exclude(pk__in=but_for)

    @property
    def has_choice(self) -> bool:
        return self.fields["location"].queryset.exists()


class ChangeForm(PageForm):
    """What can be changed of a location."""

    name = forms.CharField(max_length=60)
    path = forms.CharField(
        max_length=1000,
        label="Path on the master's machine",
        help_text="Change it after all its files, `.stokehold-location` too, were brought to the new place.",
    )
    server_path = forms.CharField(
        max_length=1000, required=False, label="Path on servers", help_text="Of shared storage. Empty: the same."
    )
    quota_gb = forms.FloatField(
        required=False, min_value=0.001, label="Quota (GB)", help_text="Of files that are ours. Empty: the whole disk."
    )
    read_only = forms.BooleanField(required=False, label="Read-only", help_text="Nothing in it is ever written.")
    is_default = forms.BooleanField(
        required=False, label="Default", help_text="Imports go here when nobody says where."
    )

    def fields_of_location(self) -> dict[str, Any]:
        """As the services take them."""
        found = dict(self.cleaned_data)
        quota_gb = found.pop("quota_gb")
        return {**found, "quota_bytes": int(quota_gb * 1e9) if quota_gb else None}


class AddForm(ChangeForm):
    """A new location."""

    field_order = ["name", "kind", "path"]
    kind = forms.ChoiceField(
        choices=[
            (LocationKind.STORE, "A folder of ours, such as a second disk"),
            (LocationKind.SHARED, "Shared storage that servers mount too, such as NFS"),
        ],
        help_text="A folder of ours begins empty. On shared storage, folders become versions where they are.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["path"].help_text = "A folder that is there. Mount its disk first."


@admin.register(StorageLocation)
class StorageLocationAdmin(PageAdmin):
    """Where models are kept on the master."""

    add_label = "Add a location"
    intro = "Where the master keeps models. A version may lie in several; servers pull from whichever is within reach."
    list_display = ("name", "state", "kind_name", "where", "usage", "disk", "versions")
    search_fields = ("name", "path")

    def get_queryset(self, request: HttpRequest) -> QuerySet[StorageLocation]:
        return services.locations().annotate(version_count=Count("copies"))

    def list_title(self) -> str:
        return "Storage locations"

    @admin.display(description="State")
    def state(self, row: StorageLocation) -> str:
        return SafeString(render_cell("location", "state", row))  # from an autoescaped template

    @admin.display(description="Kind", ordering="kind")
    def kind_name(self, row: StorageLocation) -> str:
        return row.get_kind_display()

    @admin.display(description="Path", ordering="path")
    def where(self, row: StorageLocation) -> str:
        return str(row.root)

    @admin.display(description="Models", ordering="used_bytes")
    def usage(self, row: StorageLocation) -> str:
        return SafeString(render_cell("location", "usage", row))  # from an autoescaped template

    @admin.display(description="Disk", ordering="free_bytes")
    def disk(self, row: StorageLocation) -> str:
        return SafeString(render_cell("location", "disk", row))  # from an autoescaped template

    @admin.display(description="Versions")
    def versions(self, row: StorageLocation) -> int:
        return row.version_count

    # ------------------------------------------------------------------------------------------------ pages

    def own_urls(self) -> list[URLPattern]:
        return [
            self.route("<str:object_id>/look/", self.look, "look"),
            self.route("<str:object_id>/move-all/", self.move_all, "move_all"),
            self.route("<str:object_id>/mark/", self.mark, "mark"),
            self.route("<str:object_id>/remove/", self.remove, "remove"),
        ]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = AddForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            with told(request):
                row = services.add_location(**form.fields_of_location(), now=timezone.now())
                messages.success(request, f"{row} is added.")
                return HttpResponseRedirect(self.url("change", row.pk))
        return self.page(request, "stokehold/location_add.html", "Add a location", form=form)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        row: StorageLocation = self.row_or_404(request, object_id)
        form = ChangeForm(request.POST or None, initial=_initial(row))
        if row.builtin:
            form.fields["path"].disabled = True
            form.fields["path"].help_text = "In this installation's home folder."
        if request.method == "POST" and form.is_valid():
            self.must_change(request, row)
            with told(request):
                services.change_location(row, **form.fields_of_location())
                messages.success(request, f"{row} is changed.")
                return HttpResponseRedirect(self.url("change", row.pk))
            row.refresh_from_db()
        held = VersionCopy.objects.filter(location=row).select_related("version__model").defer("version__manifest")
        return self.page(
            request,
            "stokehold/location.html",
            row.name,
            row=row,
            form=form,
            copies=held.order_by("version__model__name", "-version__created_at")[:MOST_SHOWN],
            hidden=max(0, held.count() - MOST_SHOWN),
            jobs=row.jobs.filter(state__in=UNDER_WAY).select_related("version__model", "source", "location"),
            target=TargetForm(but_for=[row.pk]),
            may_change=self.has_change_permission(request, row),
            may_remove=self.has_delete_permission(request, row) and not row.builtin,
            may_work=request.user.has_perm(_MAY_WORK),
        )

    def look(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self._posted(request, object_id)
        services.look_at(row, timezone.now())
        if row.reachable:
            messages.success(request, f"{row} is there.")
        else:
            messages.error(request, f"{row} cannot be reached. {row.error}")
        return HttpResponseRedirect(self.url("change", row.pk))

    def move_all(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row: StorageLocation = self.row_or_404(request, object_id)
        if request.method != "POST" or not request.user.has_perm(_MAY_WORK):
            raise PermissionDenied
        form = TargetForm(request.POST, but_for=[row.pk])
        if form.is_valid():
            with told(request):
                started = jobs.start_moves(row, form.cleaned_data["location"], now=timezone.now())
                messages.success(request, f"{len(started)} versions are on their way.")
        return HttpResponseRedirect(self.url("change", row.pk))

    def mark(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row: StorageLocation = self.row_or_404(request, object_id)
        self.must_change(request, row)
        return self.confirmed(
            request,
            f"Is {row.root} the location {row}?",
            lambda: services.mark_location(row, timezone.now()),
            done=f"{row} is {row.root} from now on.",
            back=self.url("change", row.pk),
            consequence="Say so only when its disk is mounted and its files are there, or lost for good. What is"
            " missing then is called damaged at the next verification, and repaired from other copies.",
            button="Yes, this is it",
        )

    def remove(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row: StorageLocation = self.row_or_404(request, object_id)
        if not self.has_delete_permission(request, row):
            raise PermissionDenied
        if request.method == "POST":
            with told(request):
                services.remove_location(row)
                messages.success(request, f"{row.name} is removed.")
                return HttpResponseRedirect(self.url("changelist"))
            return HttpResponseRedirect(self.url("change", object_id))
        return self.confirmed(
            request,
            f"Remove {row}?",
            lambda: None,
            done="",
            back=self.url("change", row.pk),
            consequence="A location that versions lie in stays. Files of others in a shared folder are not touched.",
            button="Remove it",
            danger=True,
        )

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Django's own would ask about rows only."""
        return HttpResponseRedirect(self.url("remove", object_id))

    def _posted(self, request: HttpRequest, object_id: str) -> StorageLocation:
        row: StorageLocation = self.row_or_404(request, object_id)
        self.must_change(request, row)
        if request.method != "POST":
            raise PermissionDenied
        return row


def _initial(row: StorageLocation) -> dict[str, Any]:
    fields = {name: getattr(row, name) for name in ("name", "server_path", "read_only", "is_default")}
    return {**fields, "path": str(row.root), "quota_gb": row.quota_bytes / 1e9 if row.quota_bytes else None}


# ------------------------------------------------------------------------------------------------ of a version


def copy_urls(page: PageAdmin) -> list[URLPattern]:
    """Addresses below a version's."""
    views: list[tuple[str, Callable[..., HttpResponse], str]] = [
        ("<str:object_id>/copies/add/", _add_copy, "add_copy"),
        ("<str:object_id>/copies/<int:copy_id>/", _copy_page, "copy"),
        ("<str:object_id>/copies/<int:copy_id>/verify/", _verify, "verify_copy"),
        ("<str:object_id>/copies/<int:copy_id>/move/", _move, "move_copy"),
        ("<str:object_id>/copies/<int:copy_id>/delete/", _delete, "delete_copy"),
        ("<str:object_id>/work/<int:job_id>/cancel/", _cancel, "cancel_work"),
    ]

    def of(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        return lambda request, **names: view(page, request, **names)

    return [page.route(address, of(view), name) for address, view, name in views]


def _add_copy(page: PageAdmin, request: HttpRequest, object_id: str) -> HttpResponse:
    version: ModelVersion = page.row_or_404(request, object_id)
    _must(request, _MAY_WORK)
    there = list(copies.copies_of(version).values_list("location_id", flat=True))
    form = TargetForm(request.POST or None, but_for=there)
    if request.method == "POST" and form.is_valid():
        with told(request):
            location = form.cleaned_data["location"]
            jobs.start_copy(version, location, now=timezone.now())
            messages.success(request, f"{version} is on its way to {location}.")
            return HttpResponseRedirect(page.url("change", version.pk))
    return page.page(request, "stokehold/copy_add.html", f"Copy {version} to", row=version, form=form)


def _copy_page(page: PageAdmin, request: HttpRequest, object_id: str, copy_id: int) -> HttpResponse:
    version, copy = _copy(page, request, object_id, copy_id)
    there = list(copies.copies_of(version).values_list("location_id", flat=True))
    return page.page(
        request,
        "stokehold/copy.html",
        f"{version} in {copy.location}",
        row=version,
        copy=copy,
        is_last=len(there) < 2,
        target=TargetForm(but_for=there),
        may_work=request.user.has_perm(_MAY_WORK),
        may_delete=request.user.has_perm(_MAY_DELETE),
        location_url=reverse(f"{page.admin_site.name}:models_registry_storagelocation_change", args=[copy.location_id]),
    )


def _verify(page: PageAdmin, request: HttpRequest, object_id: str, copy_id: int) -> HttpResponse:
    version, copy = _posted_copy(page, request, object_id, copy_id, _MAY_WORK)
    with told(request):
        jobs.start_verify(copy, now=timezone.now())
        messages.success(request, f"The copy in {copy.location} is read again, and repaired where it must be.")
    return HttpResponseRedirect(page.url("change", version.pk))


def _move(page: PageAdmin, request: HttpRequest, object_id: str, copy_id: int) -> HttpResponse:
    version, copy = _posted_copy(page, request, object_id, copy_id, _MAY_WORK)
    form = TargetForm(request.POST, but_for=[copy.location_id])
    if form.is_valid():
        with told(request):
            location = form.cleaned_data["location"]
            jobs.start_move(copy, location, now=timezone.now())
            messages.success(request, f"{version} is on its way from {copy.location} to {location}.")
    return HttpResponseRedirect(page.url("change", version.pk))


def _delete(page: PageAdmin, request: HttpRequest, object_id: str, copy_id: int) -> HttpResponse:
    version, copy = _copy(page, request, object_id, copy_id)
    _must(request, _MAY_DELETE)
    kept = "The folder and its files stay as they are." if copy.in_place else "Its files go from there."
    return page.confirmed(
        request,
        f"Delete the copy in {copy.location}?",
        lambda: copies.delete_copy(copy),
        done=f"{version} does not lie in {copy.location} any more.",
        back=page.url("change", version.pk),
        consequence=f"{kept} The last whole copy of a version is not deleted.",
        button="Delete the copy",
        danger=True,
    )


def _cancel(page: PageAdmin, request: HttpRequest, object_id: str, job_id: int) -> HttpResponse:
    version: ModelVersion = page.row_or_404(request, object_id)
    _must(request, _MAY_WORK)
    job = StorageJob.objects.filter(pk=job_id, version=version).select_related("version__model", "location").first()
    if job is None:
        raise Http404
    return page.confirmed(
        request,
        f"End the {job.kind} of {version}?",
        lambda: jobs.cancel_job(job),
        done="It ends within a second.",
        back=page.url("change", version.pk),
        consequence="Its copies stay as they were before.",
        button="End it",
        danger=True,
    )


def _copy(page: PageAdmin, request: HttpRequest, object_id: str, copy_id: int) -> tuple[ModelVersion, VersionCopy]:
    version: ModelVersion = page.row_or_404(request, object_id)
    copy = copies.copies_of(version).filter(pk=copy_id).first()
    if copy is None:
        raise Http404
    return version, copy


def _posted_copy(
    page: PageAdmin, request: HttpRequest, object_id: str, copy_id: int, permission: str
) -> tuple[ModelVersion, VersionCopy]:
    found = _copy(page, request, object_id, copy_id)
    _must(request, permission)
    if request.method != "POST":
        raise PermissionDenied
    return found


def _must(request: HttpRequest, permission: str) -> None:
    if not request.user.has_perm(permission):
        raise PermissionDenied
