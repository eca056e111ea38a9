"""What people do on a version's page: notes, aliases, licence, files that can run code, comparing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import SimpleListFilter
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone

from models_registry import aliases, catalog, tags, words
from models_registry.compare import compare
from models_registry.inspect.signatures import Kind
from models_registry.models import Model, ModelAlias, ModelVersion, VersionState
from templates.base import PageAdmin, told
from templates.forms import PageForm

_MOVES_SHOWN = 10
_OTHERS_SHOWN = 200
_KINDS = {
    Kind.MODEL_SIGNING: "model signature (OpenSSF)",
    Kind.SIGSTORE: "Sigstore bundle",
    Kind.CHECKSUMS: "checksum list",
    Kind.OPENPGP: "OpenPGP signature",
    Kind.MINISIGN: "minisign signature",
    Kind.SSH: "SSH signature",
    Kind.X509: "X.509 signature",
    Kind.UNKNOWN: "signature of an unknown kind",
}
_ALIAS = "models_registry.{}_modelalias"


class NotesForm(PageForm):
    """What people want to remember of a version."""

    notes = forms.CharField(required=False, max_length=20_000, widget=forms.Textarea(attrs={"rows": 4}))
    tags = forms.CharField(required=False, max_length=1000, help_text="With commas between, e.g. `prod, eu`.")
    model_notes = forms.CharField(
        required=False, max_length=20_000, label="Notes of all versions", widget=forms.Textarea(attrs={"rows": 2})
    )
    model_tags = forms.CharField(required=False, max_length=1000, label="Tags of all versions")

    @classmethod
    def of(cls, row: ModelVersion) -> NotesForm:
        told = {"notes": row.notes, "tags": row.tags, "model_notes": row.model.notes, "model_tags": row.model.tags}
        packed = {name: ", ".join(tags.unpacked(text)) for name, text in told.items() if name.endswith("tags")}
        return cls(initial=told | packed)


class AliasForm(PageForm):
    """A name that should point at this version."""

    name = forms.CharField(max_length=40, label="Point an alias here", help_text="E.g. `prod`: made when it is new.")


class TagFilter(SimpleListFilter):
    """Versions by a tag of theirs, or of their model's."""

    title = "tag"
    parameter_name = "tag"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        texts = [
            *Model.objects.exclude(tags="").values_list("tags", flat=True).distinct(),
            *ModelVersion.objects.exclude(tags="").order_by().values_list("tags", flat=True).distinct(),
        ]
        return [(tag, tag) for tag in sorted({tag for text in texts for tag in tags.unpacked(text)})]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ModelVersion]) -> QuerySet[ModelVersion]:
        return tags.versions_tagged(queryset, self.value()) if self.value() else queryset


def about(request: HttpRequest, row: ModelVersion) -> dict[str, Any]:
    """What the page of a version shows of it beside files and facts."""
    can = request.user.has_perm
    ready = row.state == VersionState.READY
    others = row.model.versions.filter(state=VersionState.READY).exclude(pk=row.pk)
    return {
        "words": words.sentences([row], timezone.now())[row.pk],
        "license_waits": ready and catalog.waits_for_acceptance(row),
        "findings": (row.scan or {}).get("files", []),
        "signatures": [{**one, "words": _KINDS[Kind(one["kind"])]} for one in catalog.signatures_of(row) or ()],
        "tags": tags.unpacked(row.tags),
        "model_tags": tags.unpacked(row.model.tags),
        "aliases": row.model.aliases.select_related("model", "version").prefetch_related("followers"),
        "moves": row.model.alias_moves.all()[:_MOVES_SHOWN],
        "others": others.only("pk", "version", "created_at").order_by("-created_at")[:_OTHERS_SHOWN],
        "notes_form": NotesForm.of(row),
        "alias_form": AliasForm(auto_id="alias_%s"),
        "may_annotate": can("models_registry.change_modelversion"),
        "may_alias": ready and can(_ALIAS.format("change")),
        "may_delete_alias": can(_ALIAS.format("delete")),
        "may_allow": can("models_registry.allow_pickle"),
    }


def save_notes(page: PageAdmin, request: HttpRequest, object_id: str) -> HttpResponse:
    def act(row: ModelVersion) -> str:
        form = NotesForm(request.POST)
        if not form.is_valid():
            return ""
        said = form.cleaned_data
        catalog.annotate(row.model, notes=said["model_notes"], tags=said["model_tags"].split(","))
        catalog.annotate(row, notes=said["notes"], tags=said["tags"].split(","))
        return "The notes are saved."

    return _done(page, request, object_id, "models_registry.change_modelversion", act)


def set_alias(page: PageAdmin, request: HttpRequest, object_id: str) -> HttpResponse:
    def act(row: ModelVersion) -> str:
        name = request.POST.get("name", "").strip()
        alias = aliases.set_alias(row, name, by=request.user.get_username(), now=timezone.now())
        return f"{alias} points at {row} now. Deployments that follow it roll it out."

    return _done(page, request, object_id, _ALIAS.format("change"), act)


def release_alias(page: PageAdmin, request: HttpRequest, object_id: str, alias_id: int) -> HttpResponse:
    def act(row: ModelVersion) -> str:
        alias = aliases.release_latest(_alias_of(row, alias_id), by=request.user.get_username(), now=timezone.now())
        return f"{alias} follows the newest version again."

    return _done(page, request, object_id, _ALIAS.format("change"), act)


def delete_alias(page: PageAdmin, request: HttpRequest, object_id: str, alias_id: int) -> HttpResponse:
    row = page.row_or_404(request, object_id)
    _must(request, _ALIAS.format("delete"))
    alias = _alias_of(row, alias_id)
    return page.confirmed(
        request,
        f"Delete {alias}?",
        lambda: aliases.delete_alias(alias, by=request.user.get_username(), now=timezone.now()),
        done=f"{alias} is deleted.",
        back=page.url("change", row.pk),
        consequence="The version stays. An alias that a deployment follows is not deleted.",
        button="Delete it",
        danger=True,
    )


def accept_license(page: PageAdmin, request: HttpRequest, object_id: str) -> HttpResponse:
    row = page.row_or_404(request, object_id)
    _must(request, "models_registry.change_modelversion")
    return page.confirmed(
        request,
        f"Accept the licence of {row}?",
        lambda: catalog.accept_license(row, by=request.user.get_username(), now=timezone.now()),
        done="It is noted that you accepted the licence.",
        back=page.url("change", row.pk),
        consequence=f"Licence: {row.license or 'as its source shows it'}. Source: {row.source}. Your name and the time "
        "are kept; then it can be deployed.",
        texts=catalog.license_texts(row),
        source_url=catalog.source_page(row),
        button="Accept it",
    )


def allow_pickle(page: PageAdmin, request: HttpRequest, object_id: str) -> HttpResponse:
    row = page.row_or_404(request, object_id)
    _must(request, "models_registry.allow_pickle")
    return page.confirmed(
        request,
        f"Let engines load files of {row} that can run code?",
        lambda: catalog.allow_pickle(row, by=request.user.get_username(), now=timezone.now()),
        done=f"Files of {row} that can run code are allowed.",
        back=page.url("change", row.pk),
        consequence="Whoever made these files can then run any program on the servers that load them. Safetensors and "
        "GGUF cannot: import one of these where there is one. Your name and the time are kept.",
        button="Allow it",
        danger=True,
    )


def forbid_pickle(page: PageAdmin, request: HttpRequest, object_id: str) -> HttpResponse:
    def act(row: ModelVersion) -> str:
        catalog.forbid_pickle(row, by=request.user.get_username())
        return "It is not allowed any more. Deployments that run go on until they are changed."

    return _done(page, request, object_id, "models_registry.allow_pickle", act)


def compare_page(page: PageAdmin, request: HttpRequest, object_id: str) -> HttpResponse:
    row = page.row_or_404(request, object_id)
    asked = request.GET.get("with", "")
    other = ModelVersion.objects.select_related("model").filter(pk=asked).first() if asked.isdecimal() else None
    if other is None:
        raise Http404
    with told(request):
        found = compare(row, other)
        changed = [one for one in found.files if one.change != "same"]
        return page.page(
            request,
            "stokehold/model_compare.html",
            f"{row} and {other}",
            row=row,
            other=other,
            found=found,
            changed=changed,
            same=len(found.files) - len(changed),
        )
    return HttpResponseRedirect(page.url("change", row.pk))


def _done(
    page: PageAdmin, request: HttpRequest, object_id: str, permission: str, act: Callable[[ModelVersion], str]
) -> HttpResponse:
    """A change that is asked for by a button of the page itself."""
    row = page.row_or_404(request, object_id)
    _must(request, permission)
    if request.method != "POST":
        raise PermissionDenied
    with told(request):
        if done := act(row):
            messages.success(request, done)
    return HttpResponseRedirect(page.url("change", row.pk))


def _must(request: HttpRequest, permission: str) -> None:
    if not request.user.has_perm(permission):
        raise PermissionDenied


def _alias_of(row: ModelVersion, alias_id: int) -> ModelAlias:
    found = row.model.aliases.select_related("model", "version").filter(pk=alias_id).first()
    if found is None:
        raise Http404
    return found
