"""Pages of routes, providers and prices: glue around `deployments.routing.services`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern

from deployments.models import ModelPrice, Provider, Route, TargetKind
from deployments.routing import services
from deployments.routing.forms import (
    PriceForm,
    ProviderChangeForm,
    ProviderForm,
    RouteChangeForm,
    RouteForm,
    target_forms,
)
from templates.base import PageAdmin, told


class _RoutingAdmin(PageAdmin):
    """Rows with a form and a page that asks before it deletes."""

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False  # Django's own delete; ours is `delete_page`

    def may_delete(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm(f"{self.opts.app_label}.delete_{self.opts.model_name}"))

    def own_urls(self) -> list[URLPattern]:
        return [self.route("<str:object_id>/delete-it/", self.delete_page, "delete_page")]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        return self.edited(request, None)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        if request.method == "POST":
            self.must_change(request, row)
        return self.edited(request, row)

    def edited(self, request: HttpRequest, row: Any) -> HttpResponse:
        raise NotImplementedError

    def saved(self, request: HttpRequest, act: Callable[[], Any]) -> HttpResponse | None:
        with told(request):
            row = act()
            messages.success(request, f"{row} is saved; gateways have it within a second.")
            return HttpResponseRedirect(self.url("changelist"))
        return None

    def form_page(self, request: HttpRequest, row: Any, title: str, **context: Any) -> HttpResponse:
        allowed = self.has_add_permission(request) if row is None else self.has_change_permission(request, row)
        may_delete = row is not None and self.may_delete(request)
        delete_url = self.url("delete_page", row.pk) if may_delete else ""
        return self.page(
            request, "stokehold/routing_form.html", title, row=row, may_change=allowed, delete_url=delete_url, **context
        )

    def delete_it(self, row: Any, actor: str) -> None:
        raise NotImplementedError

    def delete_page(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.row_or_404(request, object_id)
        if not self.may_delete(request):
            raise PermissionDenied
        return self.confirmed(
            request,
            f"Delete {self.opts.verbose_name} {row}?",
            lambda: self.delete_it(row, request.user.get_username()),
            done=f"{row} is deleted.",
            back=self.url("changelist"),
            consequence="Gateways stop using it within a second.",
            button="Delete it",
            danger=True,
        )


@admin.register(Route)
class RouteAdmin(_RoutingAdmin):
    """Public names that lead to others."""

    add_label = "Make a route"
    intro = "A public name for others: shares by weight (canary, A/B), an alias, fallbacks when nothing is ready."
    list_display = ("name", "shares", "fallbacks", "is_listed")
    search_fields = ("name", "description")

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = super().get_queryset(request)
        return rows.prefetch_related("targets__deployment", "targets__to", "targets__provider")

    def list_title(self) -> str:
        return "Routes"

    @admin.display(description="Shares")
    def shares(self, row: Route) -> str:
        found = [target for target in row.targets.all() if target.kind == TargetKind.SHARE]
        whole = sum(target.weight for target in found) or 1
        return ", ".join(f"{target.target} {100 * target.weight / whole:.3g} %" for target in found)

    @admin.display(description="Fallbacks")
    def fallbacks(self, row: Route) -> str:
        return ", then ".join(t.target for t in row.targets.all() if t.kind == TargetKind.FALLBACK) or "none"

    @admin.display(description="Listed", boolean=True, ordering="listed")
    def is_listed(self, row: Route) -> bool:
        return row.listed

    def edited(self, request: HttpRequest, row: Route | None) -> HttpResponse:
        initial = None if row is None else {"description": row.description, "listed": row.listed}
        form = (RouteForm if row is None else RouteChangeForm)(request.POST or None, initial=initial)
        rows = target_forms(request.POST or None, row)
        if request.method == "POST" and form.is_valid() and rows.is_valid():
            targets = [spec for one in rows.forms if (spec := one.spec()) is not None]
            asked = {**form.cleaned_data, "targets": targets, "actor": request.user.get_username()}
            answer = self.saved(
                request, lambda: services.create_route(**asked) if row is None else services.update_route(row, **asked)
            )
            if answer is not None:
                return answer
        title = "Make a route" if row is None else f"Route {row.name}"
        return self.form_page(request, row, title, form=form, rows=rows)

    def delete_it(self, row: Route, actor: str) -> None:
        services.delete_route(row, actor=actor)


@admin.register(Provider)
class ProviderAdmin(_RoutingAdmin):
    """Services outside."""

    add_label = "Add a provider"
    intro = "OpenAI-compatible services outside that routes may use, as a fallback or for a share of the requests."
    list_display = ("name", "base_url", "offers", "has_key")
    search_fields = ("name", "base_url")

    @admin.display(description="Offers")
    def offers(self, row: Provider) -> str:
        return ", ".join(row.endpoints)

    @admin.display(description="Key", boolean=True)
    def has_key(self, row: Provider) -> bool:
        return bool(row.sealed_key)

    def edited(self, request: HttpRequest, row: Provider | None) -> HttpResponse:
        initial = None if row is None else {"base_url": row.base_url, "endpoints": row.endpoints}
        form = (ProviderForm if row is None else ProviderChangeForm)(request.POST or None, initial=initial)
        if request.method == "POST" and form.is_valid():
            asked = {**form.cleaned_data, "actor": request.user.get_username()}
            if row is not None and not asked["api_key"]:
                del asked["api_key"]
            answer = self.saved(
                request,
                lambda: services.create_provider(**asked) if row is None else services.update_provider(row, **asked),
            )
            if answer is not None:
                return answer
        return self.form_page(request, row, "Add a provider" if row is None else f"Provider {row.name}", form=form)

    def delete_it(self, row: Provider, actor: str) -> None:
        services.delete_provider(row, actor=actor)


@admin.register(ModelPrice)
class ModelPriceAdmin(_RoutingAdmin):
    """What tokens cost."""

    add_label = "Set a price"
    intro = "Prices per million tokens by public name: they make the cost in usage, and fill budgets. Not retroactive."
    list_display = ("name", "prompt_price", "cached_price", "completion_price")
    search_fields = ("name",)

    def list_title(self) -> str:
        return "Prices"

    @admin.display(description="Prompt", ordering="prompt")
    def prompt_price(self, row: ModelPrice) -> str:
        return f"{services.per_million(row.prompt):f}"

    @admin.display(description="From the cache", ordering="cached")
    def cached_price(self, row: ModelPrice) -> str:
        return f"{services.per_million(row.cached):f}"

    @admin.display(description="Completion", ordering="completion")
    def completion_price(self, row: ModelPrice) -> str:
        return f"{services.per_million(row.completion):f}"

    def edited(self, request: HttpRequest, row: ModelPrice | None) -> HttpResponse:
        form = PriceForm(request.POST or None, price=row)
        if request.method == "POST" and form.is_valid():
            asked = form.cleaned_data if row is None else {"name": row.name, **form.cleaned_data}
            answer = self.saved(request, lambda: services.set_price(**asked))
            if answer is not None:
                return answer
        return self.form_page(request, row, "Set a price" if row is None else f"Price of {row.name}", form=form)

    def delete_it(self, row: ModelPrice, actor: str) -> None:
        services.remove_price(row)
