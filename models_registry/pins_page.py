"""Pinning a version to servers, from its page: glue around `models_registry.pins`."""

from __future__ import annotations

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404

from fleet.models import Server
from models_registry import pins
from models_registry.models import ModelVersion
from templates.base import PageAdmin, told
from templates.forms import PageForm


class PinForm(PageForm):
    """Where a version should always be."""

    server = forms.ModelChoiceField(
        Server.objects.filter(revoked_at__isnull=True),
        required=False,
        empty_label="Every server",
        help_text="It is fetched ahead of any use, and never evicted.",
    )


def context(page: PageAdmin, request: HttpRequest, row: ModelVersion) -> dict[str, object]:
    """What the version's page shows of its pins."""
    return {
        "pins": row.pins.select_related("server").order_by("server__name"),
        "pin_form": PinForm(),
        "may_pin": request.user.has_perm("models_registry.add_pin"),
        "may_unpin": request.user.has_perm("models_registry.delete_pin"),
    }


def pin(page: PageAdmin, request: HttpRequest, object_id: str) -> HttpResponse:
    row = page.row_or_404(request, object_id)
    form = PinForm(request.POST or None)
    if request.method != "POST" or not request.user.has_perm("models_registry.add_pin"):
        raise PermissionDenied
    if form.is_valid():
        with told(request):
            made = pins.pin(row, form.cleaned_data["server"])
            messages.success(request, f"{made.version} is pinned to {made.server or 'every server'}.")
    return HttpResponseRedirect(page.url("change", row.pk))


def unpin(page: PageAdmin, request: HttpRequest, object_id: str) -> HttpResponse:
    row = page.row_or_404(request, object_id)
    if request.method != "POST" or not request.user.has_perm("models_registry.delete_pin"):
        raise PermissionDenied
    with told(request):
        asked = request.POST.get("server", "")
        server = get_object_or_404(Server, pk=asked) if asked else None
        pins.unpin(row, server)
        messages.success(request, f"{row} is not pinned to {server or 'every server'} any more.")
    return HttpResponseRedirect(page.url("change", row.pk))
