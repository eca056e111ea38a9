"""The page "Import a model": one form a source, each a link away; what it asks for goes the way of the API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone

from models_registry.fetching.fields import LimitField
from models_registry.fetching.policy import policy, set_policy
from models_registry.fetching.services import MOST_PRIORITY, prioritize_import
from models_registry.importing import start_fetch
from models_registry.models import NAME, ModelVersion
from templates.base import PageAdmin, told
from templates.forms import PageForm

Start = Callable[[dict[str, Any], str], ModelVersion]
"""Of what a form holds, and who asks."""
_OPTIONAL_NAME = "Empty: its own."
_PATTERNS = "One a line, such as `*Q4_K_M.gguf`. Empty: {}."


class _Secret(forms.CharField):
    """Typed, sealed, and never shown again."""

    def __init__(self, **options: Any) -> None:
        super().__init__(widget=forms.PasswordInput(attrs={"autocomplete": "off"}), **options)


class _FetchForm(PageForm):
    """What every fetch may be told. Each has `asked`: what `importing.start_fetch` takes."""

    name = forms.CharField(
        max_length=120, required=False, validators=[NAME], label="Name here", help_text=_OPTIONAL_NAME
    )
    version = forms.CharField(max_length=40, required=False, help_text="Empty: the next free number.")
    limit_mb = LimitField()
    priority = forms.IntegerField(
        required=False,
        min_value=-MOST_PRIORITY,
        max_value=MOST_PRIORITY,
        help_text="Higher ones come first. Empty: 0.",
    )

    def common(self) -> dict[str, Any]:
        found = self.cleaned_data
        return {
            "model": found["name"],
            "version": found["version"] or None,
            "priority": found["priority"] or 0,
            "limit_bytes_per_second": found["limit_mb"],
        }


class UrlsForm(_FetchForm):
    """Files of web servers."""

    field_order = ["urls", "name", "version", "bearer_token", "headers", "limit_mb", "priority"]
    name = forms.CharField(max_length=120, validators=[NAME], label="Name here")
    urls = forms.CharField(
        max_length=2_000_000,
        label="URLs",
        widget=forms.Textarea(attrs={"rows": 5, "placeholder": "https://example.org/model.gguf sha256=9f86…"}),
        help_text="One a line, with `sha256=…` and its place `path=…` if you like; or JSON. What has no hash is hashed "
        "as it comes.",
    )
    bearer_token = _Secret(max_length=4000, required=False, help_text="Goes to the host of the URLs only.")
    headers = forms.CharField(
        max_length=8000,
        required=False,
        label="Headers to send",
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="One a line: `Name: value`.",
    )

    def asked(self) -> dict[str, Any]:
        found = self.cleaned_data
        pairs = (line.partition(":") for line in found["headers"].splitlines() if line.strip())
        headers = {name.strip(): value.strip() for name, _, value in pairs}
        return {**self.common(), "urls": found["urls"], "bearer_token": found["bearer_token"], "headers": headers}


class S3Form(_FetchForm):
    """A bucket."""

    field_order = ["address", "endpoint", "region", "access_key", "secret_key", "session_token", "patterns", "name"]
    address = forms.CharField(max_length=1200, widget=forms.TextInput(attrs={"placeholder": "s3://bucket/prefix"}))
    endpoint = forms.CharField(
        max_length=300, required=False, help_text="Such as `https://minio.example.org:9000`. Empty: AWS."
    )
    region = forms.CharField(max_length=40, required=False, help_text="Empty: `us-east-1`.")
    access_key = forms.CharField(
        max_length=200,
        required=False,
        help_text="Empty: the bucket is asked as nobody.",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    secret_key = _Secret(max_length=400, required=False, label="Secret", help_text="Encrypted, and never shown again.")
    session_token = _Secret(max_length=4000, required=False, help_text="Of temporary keys only.")
    patterns = forms.CharField(
        max_length=4000,
        required=False,
        label="Files to take",
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text=_PATTERNS.format("all under the prefix"),
    )

    def asked(self) -> dict[str, Any]:
        names = ("address", "endpoint", "region", "access_key", "secret_key", "session_token")
        return {
            **self.common(),
            "s3": {name: self.cleaned_data[name] for name in names},
            "patterns": self.cleaned_data["patterns"].split(),
        }


class ModelScopeForm(_FetchForm):
    """A repository of ModelScope."""

    field_order = ["address", "bearer_token", "patterns", "name", "version", "limit_mb", "priority"]
    address = forms.CharField(
        max_length=400, label="Repository", widget=forms.TextInput(attrs={"placeholder": "ms://org/name@revision"})
    )
    bearer_token = _Secret(max_length=400, required=False, label="Token", help_text="For private ones.")
    patterns = forms.CharField(
        max_length=4000,
        required=False,
        label="Files to take",
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text=_PATTERNS.format("the sensible ones"),
    )

    def asked(self) -> dict[str, Any]:
        found = self.cleaned_data
        return {
            **self.common(),
            "modelscope": found["address"],
            "bearer_token": found["bearer_token"],
            "patterns": found["patterns"].split(),
        }


class ArchiveForm(PageForm):
    """An export of another master."""

    path = forms.CharField(
        max_length=1000,
        required=False,
        label="Path on the master's machine",
        help_text="A tar of `export_model`, or its folder.",
    )
    upload = forms.FileField(required=False, label="Or upload a tar", help_text="As `export_model` writes it.")
    name = forms.CharField(
        max_length=120, required=False, validators=[NAME], label="Name here", help_text=_OPTIONAL_NAME
    )
    version = forms.CharField(max_length=40, required=False, help_text=_OPTIONAL_NAME)
    link = forms.BooleanField(required=False, widget=forms.HiddenInput)

    def clean(self) -> dict[str, Any]:
        found = super().clean()
        if bool(found.get("path")) == bool(found.get("upload")):
            raise forms.ValidationError("Give either a path or a tar to upload.")
        return found


@dataclass(frozen=True)
class _Source:
    """A way to import. `start` None: by `importing.start_fetch`."""

    intro: str
    form: type[PageForm]
    start: Start | None = None


def import_page(page: PageAdmin, request: HttpRequest, files: type[PageForm], start: Start) -> HttpResponse:
    """Choose a source, then fill its form. `files` is that of a path or an upload, which `start` takes in."""
    if not page.has_add_permission(request):
        raise PermissionDenied
    sources = _sources(files, start)
    chosen = request.GET.get("source", "files")
    chosen = chosen if chosen in sources else "files"
    source = sources[chosen]
    form = source.form(request.POST or None, request.FILES or None)
    if request.method == "POST" and form.is_valid():
        with told(request):
            by = request.user.get_username()
            row = source.start(form.cleaned_data, by) if source.start else start_fetch(form.asked(), timezone.now(), by)
            messages.success(request, f"The import of {row} has started.")
            return HttpResponseRedirect(page.url("change", row.pk))
    return page.page(
        request,
        "stokehold/model_import.html",
        "Import a model",
        form=form,
        source=chosen,
        intro=source.intro,
        policy=policy(),
    )


def _sources(files: type[PageForm], start: Start) -> dict[str, _Source]:
    return {
        "urls": _Source(
            "Files of any web server. They are hashed as they come, and must not change meanwhile.", UrlsForm
        ),
        "s3": _Source("What lies under a prefix, at AWS or at a service that speaks like it.", S3Form),
        "modelscope": _Source("A repository of ModelScope, its files chosen as those of the Hub are.", ModelScopeForm),
        "files": _Source(
            "Every file is hashed as it is taken in; metadata is read from the GGUF or safetensors headers. The same "
            "files are stored once, however many versions have them.",
            files,
            start,
        ),
        "archive": _Source(
            "A version that another master has exported. Every hash is checked before anything is there.",
            ArchiveForm,
            start,
        ),
    }


class BandwidthForm(PageForm):
    """The installation's bandwidth schedule."""

    schedule = forms.CharField(
        max_length=500,
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "placeholder": "22:00-06:00 unlimited, else 50 MB/s"}),
        help_text="Parts with commas between, the first that fits holds: `mon-fri 08:00-18:00 20 MB/s`, "
        "`22:00-06:00 unlimited`, and last `else 50 MB/s`. Empty: as fast as it goes.",
    )
    zone = forms.CharField(max_length=80, label="Time zone", help_text="Such as `Europe/Berlin`.")


def bandwidth_page(page: PageAdmin, request: HttpRequest) -> HttpResponse:
    """How fast all fetches together may be, by the time of day."""
    if not page.has_add_permission(request):
        raise PermissionDenied
    row = policy()
    form = BandwidthForm(request.POST or None, initial={"schedule": row.schedule, "zone": row.zone})
    if request.method == "POST" and form.is_valid():
        with told(request):
            set_policy(**form.cleaned_data)
            messages.success(request, "The schedule holds from now on, for imports under way too.")
            return HttpResponseRedirect(page.url("changelist"))
    return page.page(request, "stokehold/bandwidth.html", "Bandwidth of imports", form=form)


class _PriorityForm(PageForm):
    priority = forms.IntegerField(min_value=-MOST_PRIORITY, max_value=MOST_PRIORITY)


def prioritize(page: PageAdmin, request: HttpRequest, object_id: str) -> HttpResponse:
    """Move an import before or behind others."""
    row: ModelVersion = page.row_or_404(request, object_id)
    if not page.has_add_permission(request) or request.method != "POST":
        raise PermissionDenied
    form = _PriorityForm(request.POST)
    if not form.is_valid():
        messages.error(request, f"Give a whole number from -{MOST_PRIORITY} to {MOST_PRIORITY}.")
        return HttpResponseRedirect(page.url("change", row.pk))
    with told(request):
        prioritize_import(row, form.cleaned_data["priority"])
        messages.success(request, "Those of the highest priority are taken up first, and have most of the line.")
    return HttpResponseRedirect(page.url("change", row.pk))
