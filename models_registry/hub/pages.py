"""Pages of the admin by which a model is found at the Hub and fetched, and tokens are kept."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Case, QuerySet, Value, When
from django.db.models import Model as Row
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils import timezone
from django.utils.html import format_html

from models_registry.errors import RegistryError
from models_registry.fetching import services as fetching
from models_registry.fetching.fields import LimitField
from models_registry.hub import imports, services
from models_registry.hub.choose import variants
from models_registry.location_models import StorageLocation
from models_registry.models import NAME, HubToken, ModelVersion
from models_registry.tenants import projects_of, usable_tokens
from templates.base import PageAdmin, told, words_of
from templates.forms import PageForm

MOST_SHOWN = 500


class SearchForm(PageForm):
    """What to look for, and as whom."""

    q = forms.CharField(
        required=False,
        max_length=200,
        label="Search, or a repository",
        widget=forms.TextInput(attrs={"placeholder": "qwen3 gguf, or org/name"}),
    )
    revision = forms.CharField(required=False, max_length=200, help_text="Branch, tag or commit; empty: main.")
    token = forms.ModelChoiceField(
        HubToken.objects.none(), required=False, to_field_name="name", empty_label="none", label="Token"
    )

    def __init__(self, user: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["token"].queryset = usable_tokens(user)

    def clean_q(self) -> str:
        """The address of a repository's page, as people paste it, is its name."""
        return str(self.cleaned_data["q"]).strip().removeprefix("https://huggingface.co/").strip("/")


class FetchForm(PageForm):
    """What of a repository to take, and under which name."""

    name = forms.CharField(max_length=120, validators=[NAME], label="Name here")
    limit_mb = LimitField()
    location = forms.ModelChoiceField(
        StorageLocation.objects.all(), required=False, to_field_name="name", empty_label="the default location"
    )


def hub_page(page: PageAdmin, request: HttpRequest) -> HttpResponse:
    """Search, then a repository with its files, then (POST) the import."""
    if not page.has_add_permission(request):
        raise PermissionDenied
    form = SearchForm(request.user, request.GET or None)
    context: dict[str, Any] = {"form": form, "hits": None}
    if form.is_bound and form.is_valid():
        asked = form.cleaned_data
        try:
            if "/" in asked["q"]:
                return _repo_page(page, request, context, asked)
            context["hits"] = imports.hub_of(asked["token"]).search(asked["q"]) if asked["q"] else None
        except RegistryError as error:
            messages.error(request, words_of(error) or "")
    return page.page(request, "stokehold/hub.html", "Fetch from the Hub", **context)


def _repo_page(page: PageAdmin, request: HttpRequest, context: dict[str, Any], asked: dict[str, Any]) -> HttpResponse:
    model, choice = imports.look_up(asked["q"], asked["revision"] or "main", (), asked["token"])
    fetch = FetchForm(request.POST or None, initial={"name": model.repo})
    files = sorted(model.files, key=lambda file: (file.path not in choice.paths, file.path))
    shown, unseen = files[:MOST_SHOWN], files[MOST_SHOWN:]
    also = {file.path for file in unseen if file.path in choice.paths}  # no box of theirs can be ticked, or not
    taken = set(request.POST.getlist("files")) | also if request.method == "POST" else set(choice.paths)
    if request.method == "POST" and not taken:
        messages.error(request, "Choose at least one file.")
    elif request.method == "POST" and fetch.is_valid():
        with told(request):
            row = services.start_hub_import(
                model.repo,
                revision=model.commit,
                paths=sorted(taken),
                name=fetch.cleaned_data["name"],
                token=asked["token"],
                location=fetch.cleaned_data["location"],
                limit_bytes_per_second=fetch.cleaned_data["limit_mb"],
                by=request.user.get_username(),
                now=timezone.now(),
            )
            messages.success(request, f"The import of {row} has started.")
            return HttpResponseRedirect(page.url("change", row.pk))
    return page.page(
        request,
        "stokehold/hub.html",
        "Fetch from the Hub",
        **context,
        found=model,
        fetch=fetch,
        reason=choice.reason,
        files=[(file, file.path in taken) for file in shown],
        hidden=len(unseen),
        also=len(also),
        also_bytes=sum(file.size for file in unseen if file.path in also),
        taken_bytes=sum(file.size for file in model.files if file.path in taken),
        variants=[
            (name, ",".join(paths), sum(file.size for file in model.files if file.path in paths))
            for name, paths in variants(file.path for file in model.files).items()
            if not any(file.path in paths for file in unseen)
        ],
    )


def control_import(page: PageAdmin, request: HttpRequest, object_id: str, verb: str) -> HttpResponse:
    """Pause, go on with, or cancel an import."""
    row: ModelVersion = page.row_or_404(request, object_id)
    if not page.has_add_permission(request) or request.method != "POST":
        raise PermissionDenied
    with told(request):
        if verb == "cancel":
            fetching.cancel_import(row)
            messages.success(request, f"The import of {row} is cancelled. What was fetched is kept for a week.")
        else:
            fetching.pause_import(row, paused=verb == "pause")
            messages.success(request, "It pauses within a second." if verb == "pause" else "It goes on.")
    return HttpResponseRedirect(page.url("change", row.pk))


class TokenForm(PageForm):
    """A token of somebody's account."""

    name = forms.CharField(max_length=80, help_text="Whose it is, or what it opens.")
    project = forms.ChoiceField(required=False, help_text="Only its people, and superusers, see and use the token.")
    token = forms.CharField(
        max_length=400,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="As the Hub shows it (hf_...), with leave to read. It is encrypted, and never shown again.",
    )

    def __init__(self, user: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        named = sorted(projects_of(user).items(), key=lambda one: one[1])
        self.fields["project"].choices = [("", "everybody who may import"), *named]


@admin.register(HubToken)
class HubTokenAdmin(PageAdmin):
    """Tokens for gated and private models."""

    add_label = "Save a token"
    intro = "Tokens of accounts at the Hub, for gated and private models. They are encrypted, and never shown again."
    list_display = ("name", "used_by", "created_at", "forget_link")
    list_display_links = None
    search_fields = ("name",)

    def list_title(self) -> str:
        return "Hub tokens"

    def get_queryset(self, request: HttpRequest) -> QuerySet[HubToken]:
        rows, names = usable_tokens(request.user), projects_of(request.user)
        used = set(rows.exclude(project="").values_list("project", flat=True))
        named = [When(project=project, then=Value(names[project])) for project in used if project in names]
        return rows.annotate(whose=Case(*named, default=Value("everybody")))

    @admin.display(description="Used by")
    def used_by(self, row: HubToken) -> str:
        return str(row.whose)

    @admin.display(description="")
    def forget_link(self, row: HubToken) -> str:
        return format_html('<a class="sk-button sk-danger" href="{}">Forget</a>', self.url("forget", row.pk))

    def has_change_permission(self, request: HttpRequest, obj: Row | None = None) -> bool:
        return False

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = TokenForm(request.user, request.POST or None)
        if request.method == "POST" and form.is_valid():
            with told(request):
                row = services.save_token(**form.cleaned_data)
                messages.success(request, f"Token {row.name} is saved.")
                return HttpResponseRedirect(self.url("changelist"))
        return self.page(request, "stokehold/hub_token.html", "Save a token", form=form)

    def own_urls(self) -> list[URLPattern]:
        return [self.route("<str:object_id>/forget/", self.forget, "forget")]

    def forget(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        if not self.has_delete_permission(request, row):
            raise PermissionDenied
        return self.confirmed(
            request,
            f"Forget token {row.name}?",
            lambda: services.delete_token(row),
            done=f"Token {row.name} is forgotten.",
            back=self.url("changelist"),
            consequence="Imports under way that use it go on as nobody. At the Hub it stays good: revoke it there.",
            button="Forget it",
            danger=True,
        )
