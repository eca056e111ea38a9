"""Forms of routes, providers and prices."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms

from deployments.models import Deployment, ModelPrice, Provider, Route, RouteTarget, TargetKind
from deployments.routing.services import HEAVIEST, PRICE_PLACES, TargetSpec, per_million
from templates.forms import PageForm
from wire.feed import ENDPOINT_GROUPS

EMPTY_ROWS = 3


class RouteForm(PageForm):
    """A public name."""

    name = forms.CharField(max_length=120, help_text="What clients send as the model.")
    description = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 2}))
    listed = forms.BooleanField(
        required=False, initial=True, help_text="Off: clients cannot ask for it; other routes use it."
    )


class RouteChangeForm(RouteForm):
    """A route keeps its name."""

    name = None


class TargetForm(PageForm):
    """One target; an empty one is no target."""

    target = forms.ChoiceField(required=False)
    model = forms.CharField(required=False, max_length=200, label="Provider's model")
    kind = forms.ChoiceField(choices=TargetKind.choices, initial=TargetKind.SHARE, label="As")
    weight = forms.IntegerField(min_value=0, max_value=HEAVIEST, initial=1)

    def __init__(self, *args: Any, choices: list[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["target"].choices = choices

    def spec(self) -> TargetSpec | None:
        asked = self.cleaned_data
        kind, _, name = (asked.get("target") or "").partition(" ")
        if not name:
            return None
        model = asked["model"] if kind == "provider" else ""
        return TargetSpec(kind=asked["kind"], weight=asked["weight"], model=model, **{kind: name})


TargetFormSet = forms.formset_factory(TargetForm, extra=EMPTY_ROWS)


def target_forms(data: Any, route: Route | None) -> Any:
    """The rows of a route's page, with some empty ones."""
    rows = [] if route is None else route.targets.select_related("deployment", "to", "provider")
    initial = [_initial(row) for row in rows]
    return TargetFormSet(data, initial=initial, prefix="targets", form_kwargs={"choices": _choices(route)})


def _choices(route: Route | None) -> list[Any]:
    names = Deployment.objects.filter(deleted_at__isnull=True).order_by("name").values_list("name", flat=True)
    others = Route.objects.exclude(pk=None if route is None else route.pk).values_list("name", flat=True)
    providers = Provider.objects.values_list("name", flat=True)
    groups = (("Deployments", "deployment", names), ("Routes", "route", others), ("Providers", "provider", providers))
    found = [(title, [(f"{kind} {name}", name) for name in rows]) for title, kind, rows in groups]
    return [("", "none"), *(group for group in found if group[1])]


def _initial(row: RouteTarget) -> dict[str, Any]:
    if row.deployment is not None:
        chosen = f"deployment {row.deployment.name}"
    elif row.to is not None:
        chosen = f"route {row.to.name}"
    else:
        chosen = f"provider {row.provider}"
    return {"target": chosen, "model": row.provider_model, "kind": row.kind, "weight": row.weight}


class ProviderForm(PageForm):
    """A service outside."""

    name = forms.SlugField(max_length=60)
    base_url = forms.CharField(max_length=300, label="Address", help_text="E.g. https://api.example.com/v1")
    api_key = forms.CharField(
        required=False,
        max_length=1000,
        label="Key",
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="Kept encrypted, and never shown again.",
    )
    endpoints = forms.MultipleChoiceField(
        choices=[(group, group) for group in ENDPOINT_GROUPS],
        initial=["chat"],
        widget=forms.CheckboxSelectMultiple,
        label="What it offers",
    )


class ProviderChangeForm(ProviderForm):
    """A provider keeps its name, and its key when none is given."""

    name = None
    api_key = forms.CharField(
        required=False,
        max_length=1000,
        label="New key",
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="Empty: the one it has.",
    )


def _price(**options: Any) -> forms.DecimalField:
    return forms.DecimalField(min_value=Decimal(0), max_digits=14, decimal_places=PRICE_PLACES, **options)


class PriceForm(PageForm):
    """Price of a public name per million tokens."""

    name = forms.ChoiceField(label="Model")
    prompt = _price(label="Prompt, per million tokens")
    cached = _price(required=False, label="Prompt from the cache", help_text="Empty: as other prompt tokens.")
    completion = _price(label="Completion, per million tokens")

    def __init__(self, *args: Any, price: ModelPrice | None, **kwargs: Any) -> None:
        initial = None
        if price is not None:
            initial = {name: per_million(getattr(price, name)) for name in ("prompt", "cached", "completion")}
        super().__init__(*args, initial=initial, **kwargs)
        if price is not None:
            del self.fields["name"]
            return
        names = Deployment.objects.filter(deleted_at__isnull=True).values_list("name", flat=True)
        both = sorted({*names, *Route.objects.values_list("name", flat=True)})
        self.fields["name"].choices = [(name, name) for name in both]
