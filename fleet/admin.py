"""Pages of servers, gateways and join tokens: glue around `fleet.services`."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Model, Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils import timezone
from django.utils.html import format_html

from fleet import services
from fleet.join import join_command, unreachable
from fleet.load import load_shares, node_status
from fleet.models import Availability, Gateway, JoinToken, Role, Server
from templates.base import PageAdmin, told
from templates.cells import cell
from templates.forms import PageForm
from templates.words import UNKNOWN

MAX_LABELS = 50


class JoinTokenForm(PageForm):
    """What a new join token is for."""

    role = forms.ChoiceField(
        choices=Role.choices, label="Joins as", help_text="A server runs engines; a gateway serves clients."
    )
    hours = forms.IntegerField(min_value=1, max_value=168, initial=1, label="Valid for (hours)")
    note = forms.CharField(max_length=200, required=False, help_text="For whom or for which machine, to find it again.")


class LabelsForm(PageForm):
    """Labels as `name=value`, one a line."""

    labels = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "rack=b2\nzone=north"}),
        help_text="One `name=value` a line; deployments can ask for them.",
    )

    def clean_labels(self) -> dict[str, str]:
        lines = [line.strip() for line in self.cleaned_data["labels"].splitlines() if line.strip()]
        if len(lines) > MAX_LABELS:
            raise forms.ValidationError(f"At most {MAX_LABELS} labels.")
        labels = {}
        for line in lines:
            name, found, value = line.partition("=")
            if not found or not name.strip() or len(line) > 200:
                raise forms.ValidationError(f"{line!r} is not `name=value`.")
            labels[name.strip()] = value.strip()
        return labels


class CacheForm(PageForm):
    """How a server keeps and fetches model files."""

    quota_gb = forms.FloatField(
        required=False, min_value=0.001, label="At most (GB)", help_text="Of model files. Empty: while there is room."
    )
    keep_versions = forms.IntegerField(
        required=False, min_value=0, max_value=1000, label="Versions kept", help_text="Of each model. Empty: all."
    )
    download_mb = forms.FloatField(
        required=False, min_value=0.001, label="Fetch at most (MB/s)", help_text="Empty: as fast as it goes."
    )
    upload_mb = forms.FloatField(
        required=False, min_value=0.001, label="Hand on at most (MB/s)", help_text="To other servers. Empty: any."
    )

    FIELDS = {
        "quota_gb": ("cache_quota_bytes", 1e9),
        "keep_versions": ("keep_versions", 1),
        "download_mb": ("download_bytes_per_second", 1e6),
        "upload_mb": ("upload_bytes_per_second", 1e6),
    }

    @classmethod
    def initial_of(cls, row: Server) -> dict[str, float]:
        values = {name: (getattr(row, column), unit) for name, (column, unit) in cls.FIELDS.items()}
        return {name: value / unit for name, (value, unit) in values.items() if value is not None}

    def apply(self, row: Server) -> None:
        for name, (column, unit) in self.FIELDS.items():
            value = self.cleaned_data[name]
            setattr(row, column, None if value is None else int(value * unit))
        row.save(update_fields=[column for column, _ in self.FIELDS.values()])


class StatusFilter(admin.SimpleListFilter):
    """Servers by availability or revoked."""

    title = "availability"
    parameter_name = "availability"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [*Availability.choices, ("revoked", "revoked")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if self.value() == "revoked":
            return queryset.filter(revoked_at__isnull=False)
        return queryset.filter(availability=self.value(), revoked_at__isnull=True) if self.value() else queryset


@admin.register(Server)
class ServerAdmin(PageAdmin):
    """Servers: what they are, how loaded, what runs there."""

    live_topic = "servers"
    add_label = "Add a server"
    intro = "Machines with an agent. Cordon one to place nothing new there; drain it to move away what it has."
    list_display = ("name", "status", "load", "instances", "availability_badge", "seen")
    list_filter = (StatusFilter,)
    search_fields = ("name", "id")
    ordering = ("name",)

    def get_queryset(self, request: HttpRequest) -> Any:
        live = ~Q(instances__phase="ended")
        return (
            super()
            .get_queryset(request)
            .select_related("state", "desired")
            .defer("public_key_pem", "certificate_pem", "desired__payload", "state__observed", "state__cache")
            .annotate(
                live_instances=Count("instances", filter=live),
                ready_instances=Count("instances", filter=live & Q(instances__state="ready")),
            )
        )

    @admin.display(description="Status", ordering="state__last_seen_at")
    def status(self, row: Server) -> str:
        return cell("server", "status", row, status=str(node_status(row, timezone.now())))

    @admin.display(description="Load")
    def load(self, row: Server) -> str:
        load = getattr(getattr(row, "state", None), "load", None)
        return cell("server", "load", row, load=load, shares=load_shares(load))

    @admin.display(description="Instances", ordering="live_instances")
    def instances(self, row: Server) -> str:
        return cell("server", "instances", row)

    @admin.display(description="Availability", ordering="availability")
    def availability_badge(self, row: Server) -> str:
        return cell("server", "availability", row)

    @admin.display(description="Last heard of", ordering="state__last_seen_at")
    def seen(self, row: Server) -> str:
        return cell("server", "seen", row, state=getattr(row, "state", None))

    # ------------------------------------------------------------------------------------------------ pages

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("fleet.add_jointoken")

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Makes a join token and shows, once, the command that uses it."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = JoinTokenForm(request.POST or None, initial={"role": request.GET.get("role", "agent")})
        token = ""
        if request.method == "POST" and form.is_valid():
            with told(request):
                token = services.create_join_token(
                    role=form.cleaned_data["role"],
                    ttl=dt.timedelta(hours=form.cleaned_data["hours"]),
                    note=form.cleaned_data["note"],
                    created_by=request.user,
                    now=timezone.now(),
                )
        role = Role.GATEWAY if form.data.get("role") == Role.GATEWAY else Role.AGENT
        return self.page(
            request,
            "stokehold/server_add.html",
            "Add a server",
            form=form,
            token=token,
            module=role.value,
            command=join_command(role.value, token, request.get_host().rsplit(":", 1)[0]),
            unreachable=unreachable(),
            hours=form.cleaned_data.get("hours") if token else None,
        )

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        labels = "\n".join(f"{name}={value}" for name, value in row.labels.items())
        rules = "cache" in request.POST
        form = LabelsForm(None if rules else request.POST or None, initial={"labels": labels})
        cache_form = CacheForm(request.POST if rules else None, initial=CacheForm.initial_of(row))
        if request.method == "POST":
            self.must_change(request, row)
            if rules and cache_form.is_valid():
                cache_form.apply(row)
                messages.success(request, f"Rules for model files of {row.name} saved.")
                return HttpResponseRedirect(request.path)
            if not rules and form.is_valid():
                row.labels = form.cleaned_data["labels"]
                row.save(update_fields=["labels"])
                messages.success(request, f"Labels of {row.name} saved.")
                return HttpResponseRedirect(request.path)
        may_change = self.has_change_permission(request, row) and row.revoked_at is None
        return self.page(
            request,
            "stokehold/server.html",
            row.name,
            row=row,
            form=form,
            cache_form=cache_form,
            may_change=may_change,
        )

    def own_urls(self) -> list[URLPattern]:
        return [
            self.route("<str:object_id>/cordon/", self.cordon, "cordon"),
            self.route("<str:object_id>/drain/", self.drain, "drain"),
            self.route("<str:object_id>/activate/", self.activate, "activate"),
            self.route("<str:object_id>/revoke/", self.revoke, "revoke"),
        ]

    def cordon(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self._make(
            request, object_id, Availability.CORDONED, "Cordon", "Nothing new is placed there; what runs goes on."
        )

    def drain(self, request: HttpRequest, object_id: str) -> HttpResponse:
        words = "Its instances are started elsewhere first, then end here once their requests are done."
        return self._make(request, object_id, Availability.DRAINING, "Drain", words)

    def activate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self._make(request, object_id, Availability.ACTIVE, "Activate", "Instances may be placed there again.")

    def _make(
        self, request: HttpRequest, object_id: str, availability: Availability, verb: str, words: str
    ) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        self.must_change(request, row)
        return self.confirmed(
            request,
            f"{verb} {row.name}?",
            lambda: services.set_availability(row, availability, timezone.now()),
            done=f"{row.name} is {availability.value} now.",
            back=self.url("change", row.pk),
            consequence=words,
            button=f"{verb} it",
        )

    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        self.must_change(request, row)
        return self.confirmed(
            request,
            f"Revoke {row.name}?",
            lambda: services.revoke_server(row, timezone.now()),
            done=f"{row.name} is revoked: its link is cut.",
            back=self.url("change", row.pk),
            consequence="Its link is cut at once and its instances are placed elsewhere. It may not come back without "
            "joining anew. Drain it first to lose no request.",
            button="Revoke it",
            danger=True,
        )


@admin.register(Gateway)
class GatewayAdmin(PageAdmin):
    """Gateways: read-only, but for revoking one."""

    live_topic = "gateways"
    intro = "Processes that serve clients under the OpenAI API. They go on serving while the master is down."
    list_display = ("name", "status", "address", "traffic", "release", "seen", "revoke_link")
    search_fields = ("name", "id")
    list_display_links = None

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("state").defer("public_key_pem", "certificate_pem")

    @admin.display(description="Status")
    def status(self, row: Gateway) -> str:
        return cell("gateway", "status", row, status=str(node_status(row, timezone.now())))

    @admin.display(description="Address")
    def address(self, row: Gateway) -> str:
        return getattr(getattr(row, "state", None), "base_url", "") or UNKNOWN

    @admin.display(description="Traffic")
    def traffic(self, row: Gateway) -> str:
        return cell("gateway", "traffic", row, state=getattr(row, "state", None))

    @admin.display(description="Release")
    def release(self, row: Gateway) -> str:
        return getattr(getattr(row, "state", None), "release", "") or UNKNOWN

    @admin.display(description="Last heard of")
    def seen(self, row: Gateway) -> str:
        return cell("gateway", "seen", row, state=getattr(row, "state", None))

    @admin.display(description="")
    def revoke_link(self, row: Gateway) -> str:
        if row.revoked_at:
            return ""
        return format_html('<a class="sk-link" href="{}">Revoke</a>', self.url("revoke", row.pk))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def own_urls(self) -> list[URLPattern]:
        return [self.route("<str:object_id>/revoke/", self.revoke, "revoke")]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        return HttpResponseRedirect(self.url("changelist"))

    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        self.must_change(request, row)
        return self.confirmed(
            request,
            f"Revoke gateway {row.name}?",
            lambda: services.revoke_gateway(row, timezone.now()),
            done=f"Gateway {row.name} is revoked: its link is cut.",
            back=self.url("changelist"),
            consequence="Its link is cut at once. It gets no more keys, routes or limits and may not come back "
            "without joining anew.",
            button="Revoke it",
            danger=True,
        )


@admin.register(JoinToken)
class JoinTokenAdmin(PageAdmin):
    """Join tokens that were made; the tokens themselves are not kept."""

    intro = "Single-use and short-lived. Make one under Servers, 'Add a server'."
    list_display = ("token_id", "role", "note", "state", "made", "created_by", "expires", "used_by")
    list_filter = ("role",)
    list_display_links = None
    list_select_related = ("created_by",)

    @admin.display(description="State")
    def state(self, row: JoinToken) -> str:
        open_now = row.expires_at > timezone.now()
        return cell("token", "state", row, state="used" if row.used_at else "open" if open_now else "expired")

    @admin.display(description="Made", ordering="created_at")
    def made(self, row: JoinToken) -> str:
        return cell("token", "made", row)

    @admin.display(description="Expires", ordering="expires_at")
    def expires(self, row: JoinToken) -> str:
        return cell("token", "expires", row)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
