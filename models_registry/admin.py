"""Pages of models and their versions: glue around `models_registry.services`."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import UploadedFile
from django.db.models import Model as Row
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils import timezone
from django.utils.safestring import SafeString

from models_registry import catalog_pages, import_pages, pins_page, removal, services, tags, words
from models_registry.hub import pages
from models_registry.location_models import StorageLocation
from models_registry.locations import pages as locations
from models_registry.models import NAME, ImportJob, ModelVersion
from templates.base import PageAdmin, told
from templates.cells import cell, render_cell
from templates.forms import PageForm
from templates.words import UNKNOWN


class ImportForm(PageForm):
    """Where a version's files come from: this machine, or the person's own."""

    name = forms.CharField(max_length=120, validators=[NAME], help_text="Name of the model, e.g. `qwen3-8b`.")
    version = forms.CharField(max_length=40, required=False, help_text="Empty: the next free number.")
    path = forms.CharField(
        max_length=1000,
        required=False,
        label="Path on the master's machine",
        help_text="A GGUF file, or a folder with the model's files.",
    )
    link = forms.BooleanField(
        required=False,
        label="Hard-link instead of copying",
        help_text="Quick and takes no space, when on the same disk.",
    )
    in_place = forms.BooleanField(
        required=False,
        label="Leave it in place",
        help_text="For a folder on shared storage that servers mount too: nothing is copied.",
    )
    location = forms.ModelChoiceField(
        StorageLocation.objects.all(), required=False, to_field_name="name", empty_label="the default location"
    )
    upload = forms.FileField(required=False, label="Or upload one file", help_text="A GGUF file of this computer.")

    def clean(self) -> dict[str, Any]:
        found = super().clean()
        if bool(found.get("path")) == bool(found.get("upload")):
            raise forms.ValidationError("Give either a path or a file to upload.")
        return found


@admin.register(ModelVersion)
class ModelVersionAdmin(PageAdmin):
    """Model versions: what is in the store."""

    live_topic = "models"
    add_label = "Import a model"
    intro = "Immutable versions in the content-addressed store. Servers pull only what their instances need."
    list_display = ("title", "named_version", "state_badge", "size", "facts", "room", "made")
    list_filter = ("state", "format", "modality", "flagged", catalog_pages.TagFilter)
    search_fields = ("model__name", "version", "architecture", "notes", "tags", "model__tags", "license")
    list_select_related = ("model",)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).defer("manifest", "metadata", "scan").prefetch_related("aliases")

    def list_title(self) -> str:
        return "Models"

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        found = (getattr(response, "context_data", None) or {}).get("cl")
        if found is not None:
            rooms = words.fits(found.result_list, timezone.now())
            for row in found.result_list:
                row.room = rooms.get(row.pk)
        return response

    @admin.display(description="Version", ordering="version")
    def named_version(self, row: ModelVersion) -> str:
        return SafeString(render_cell("model", "version", row, tags=tags.unpacked(row.tags)))

    @admin.display(description="Room")
    def room(self, row: ModelVersion) -> str:
        return str(row.room or UNKNOWN)

    @admin.display(description="Model", ordering="model__name")
    def title(self, row: ModelVersion) -> str:
        return row.model.name

    @admin.display(description="Imported", ordering="created_at")
    def made(self, row: ModelVersion) -> str:
        return cell("model", "made", row)

    @admin.display(description="State", ordering="state")
    def state_badge(self, row: ModelVersion) -> str:
        return cell("model", "state", row)

    @admin.display(description="Size", ordering="size_bytes")
    def size(self, row: ModelVersion) -> str:
        return cell("model", "size", row)

    @admin.display(description="Facts", ordering="parameter_count")
    def facts(self, row: ModelVersion) -> str:
        return cell("model", "facts", row)

    # ------------------------------------------------------------------------------------------------ pages

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Starts an import; the list then shows its progress."""
        return import_pages.import_page(self, request, ImportForm, _start)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        users = row.revisions.filter(deployment__deleted_at__isnull=True, deployment__revision_id__isnull=False)
        names = sorted({revision.deployment.name for revision in users.select_related("deployment")})
        return self.page(
            request,
            "stokehold/model.html",
            str(row),
            row=row,
            used_by=names,
            job=ImportJob.objects.filter(ImportJob.FETCHED, pk=row.pk).first(),
            may_import=self.has_add_permission(request),
            may_copy=request.user.has_perm("models_registry.add_versioncopy"),
            may_delete=self.has_delete_permission(request, row),
            **pins_page.context(self, request, row),
            **catalog_pages.about(request, row),
        )

    def own_urls(self) -> list[URLPattern]:
        return [
            self.route("hub/", partial(pages.hub_page, self), "hub"),
            self.route("bandwidth/", partial(import_pages.bandwidth_page, self), "bandwidth"),
            self.route("<str:object_id>/prioritize/", partial(import_pages.prioritize, self), "prioritize"),
            *(
                self.route(f"<str:object_id>/{verb}/", partial(pages.control_import, self, verb=verb), verb)
                for verb in ("pause", "resume", "cancel")
            ),
            self.route("<str:object_id>/pin/", partial(pins_page.pin, self), "pin"),
            self.route("<str:object_id>/unpin/", partial(pins_page.unpin, self), "unpin"),
            *(
                self.route(f"<str:object_id>/{address}/", partial(view, self), name)
                for address, name, view in (
                    ("notes", "notes", catalog_pages.save_notes),
                    ("alias", "alias", catalog_pages.set_alias),
                    ("alias/<int:alias_id>/release", "alias_release", catalog_pages.release_alias),
                    ("alias/<int:alias_id>/delete", "alias_delete", catalog_pages.delete_alias),
                    ("accept", "accept", catalog_pages.accept_license),
                    ("allow", "allow", catalog_pages.allow_pickle),
                    ("forbid", "forbid", catalog_pages.forbid_pickle),
                    ("compare", "compare", catalog_pages.compare_page),
                )
            ),
            self.route("<str:object_id>/delete/", self.delete_page, "delete_page"),
            *locations.copy_urls(self),
        ]

    def delete_page(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """In place of Django's own delete view, which knows nothing of files or of who uses them."""
        row = self.row_or_404(request, object_id)
        if not self.has_delete_permission(request, row):
            raise PermissionDenied
        title = str(row)
        if request.method == "POST":
            with told(request):
                removal.delete_version(row, by=request.user.get_username())
                messages.success(request, f"{title} is deleted.")
                return HttpResponseRedirect(self.url("changelist"))
            return HttpResponseRedirect(self.url("change", row.pk))
        return self.confirmed(
            request,
            f"Delete {title}?",
            lambda: None,
            done="",
            back=self.url("change", row.pk),
            consequence="Its row goes, and those of its files that no other version has. A version that a deployment "
            "uses is not deleted.",
            button="Delete it",
            danger=True,
        )

    def has_change_permission(self, request: HttpRequest, obj: Row | None = None) -> bool:
        return False  # immutable


def _start(asked: dict[str, Any], by: str) -> ModelVersion:
    more = {"version": asked["version"] or None, "by": by, "location": asked.get("location"), "now": timezone.now()}
    name = asked["name"] or None
    if asked["upload"] is None:
        how = {"link": asked["link"], "in_place": asked.get("in_place", False)}
        return services.start_import(name, Path(asked["path"]), **how, **more)
    upload: UploadedFile = asked["upload"]
    kept = _on_disk(upload)
    try:
        return services.start_upload(name, kept, upload.name or "model.gguf", **more)
    finally:
        kept.unlink(missing_ok=True)  # moved away unless it was refused


def _on_disk(upload: UploadedFile) -> Path:
    """The uploaded file beside the store, so that taking it in is a rename."""
    folder = services.store().root
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".upload-")
    with os.fdopen(handle, "wb") as file:
        for chunk in upload.chunks():
            file.write(chunk)
    return Path(name)
