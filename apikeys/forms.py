"""Forms of keys, projects and usage."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from django.apps import apps
from django.contrib.auth import get_user_model
from django.db.models import QuerySet

from apikeys.access import projects_with_visible_usage
from apikeys.checks import (
    HIGHEST_PRIORITY,
    LIMIT_FIELDS,
    LONGEST_GUARD_MS,
    MOST_LOG_DAYS,
    checked_networks,
    checked_patterns,
)
from apikeys.errors import InvalidNetworks, InvalidRequestLog
from apikeys.models import ApiKey, Limits, ModelQuota, Project, ProjectRole, UsageHour
from apikeys.money import from_nano, to_nano
from templates.forms import PageForm
from wire.feed import ENDPOINT_GROUPS


class LimitsForm(PageForm):
    """The quota fields; empty does not limit."""

    requests_per_minute = forms.IntegerField(required=False, min_value=1)
    tokens_per_minute = forms.IntegerField(required=False, min_value=1)
    parallel_requests = forms.IntegerField(required=False, min_value=1)
    tokens_per_day = forms.IntegerField(required=False, min_value=1, help_text="UTC day.")
    tokens_per_month = forms.IntegerField(required=False, min_value=1, help_text="UTC month.")
    max_tokens_per_request = forms.IntegerField(required=False, min_value=1, help_text="Prompt and answer together.")
    cost_per_month = forms.DecimalField(
        required=False,
        min_value=Decimal("0.000001"),
        max_digits=15,
        decimal_places=6,
        help_text="By the models' prices, UTC month.",
    )

    def limits(self) -> dict[str, int | None]:
        """As the services take them."""
        cost = self.cleaned_data["cost_per_month"]
        counts = {name: self.cleaned_data[name] for name in LIMIT_FIELDS if name != "cost_per_month"}
        return {**counts, "cost_per_month": None if cost is None else to_nano(cost)}

    def limit_fields(self) -> list[Any]:
        return [self[name] for name in LIMIT_FIELDS]

    def main_fields(self) -> list[Any]:
        return [field for field in self.visible_fields() if field.name not in LIMIT_FIELDS]


def limits_initial(row: Limits) -> dict[str, Any]:
    """What a form of limits shows of a row."""
    values = {name: getattr(row, name) for name in LIMIT_FIELDS}
    if values["cost_per_month"] is not None:
        values["cost_per_month"] = from_nano(values["cost_per_month"])
    return values


def limits_in_words(row: Limits) -> str:
    """`600 requests per minute, 20 cost per month`; empty when nothing limits."""
    found = [(name.replace("_", " "), value) for name, value in limits_initial(row).items() if value is not None]
    return ", ".join(f"{value:,} {name}" for name, value in found)


class KeyForm(LimitsForm):
    """A key: for whom, for what, how much, how long."""

    project = forms.ModelChoiceField(Project.objects.none(), empty_label=None)
    name = forms.CharField(max_length=80, help_text="Who or what uses it, to tell keys apart.")
    allowed_models = forms.MultipleChoiceField(
        required=False,
        widget=forms.CheckboxSelectMultiple,
        label="Models it may use",
        help_text="None chosen: all, those to come included.",
    )
    allowed_endpoints = forms.MultipleChoiceField(
        required=False,
        choices=[(group, group) for group in ENDPOINT_GROUPS],
        widget=forms.CheckboxSelectMultiple,
        label="Endpoints it may use",
        help_text="None chosen: all.",
    )
    allowed_networks = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "placeholder": "10.1.0.0/16"}),
        label="Networks its clients come from",
        help_text="One CIDR or address a line; empty: from anywhere.",
    )
    service = forms.CharField(
        required=False,
        max_length=80,
        label="Service account",
        help_text="Name of the program it belongs to; empty: a person's key.",
    )
    expires_at = forms.DateTimeField(
        required=False,
        label="Expires (UTC)",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        help_text="Empty: never.",
    )

    field_order = (
        *("project", "name", "allowed_models", "allowed_endpoints", "allowed_networks", "service", "expires_at"),
    )

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "project" in self.fields:
            self.fields["project"].queryset = projects.filter(active=True)
        chosen = (self.initial or {}).get("allowed_models") or []
        self.fields["allowed_models"].choices = [(name, name) for name in sorted({*public_names(), *chosen})]

    def clean_allowed_networks(self) -> list[str] | None:
        return _networks_of(self.cleaned_data["allowed_networks"])

    def scopes(self) -> dict[str, Any]:
        """What the key is limited to, as the services take it."""
        names = ("allowed_models", "allowed_endpoints", "allowed_networks")
        scopes = {name: self.cleaned_data[name] or None for name in names}
        return {**scopes, "service": self.cleaned_data["service"], "expires_at": self.cleaned_data["expires_at"]}


def _networks_of(text: str) -> list[str] | None:
    try:
        return checked_networks(text.replace(",", " ").split())
    except InvalidNetworks as error:
        raise forms.ValidationError(f"{error.message} {error.remedy}") from error


def key_initial(row: ApiKey) -> dict[str, Any]:
    """What the form of a key shows of it."""
    shown = {name: getattr(row, name) for name in ("name", "allowed_models", "allowed_endpoints", "service")}
    networks = "\n".join(row.allowed_networks or ())
    return {**limits_initial(row), **shown, "allowed_networks": networks, "expires_at": row.expires_at}


class ManagementKeyForm(PageForm):
    """A management key: for what, how much, from where, how long."""

    user = forms.ModelChoiceField(
        get_user_model().objects.none(), empty_label=None, to_field_name="username", label="Acts as"
    )
    name = forms.CharField(max_length=80, help_text="The script or machine that uses it.")
    read_only = forms.BooleanField(
        required=False, initial=True, label="Read only", help_text="Off: it may change whatever its person may."
    )
    allowed_networks = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "placeholder": "10.1.0.0/16"}),
        label="Networks its clients come from",
        help_text="One CIDR or address a line; empty: from anywhere.",
    )
    expires_at = forms.DateTimeField(
        required=False,
        label="Expires (UTC)",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        help_text="Empty: never.",
    )

    def __init__(self, *args: Any, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        people = get_user_model().objects.filter(is_active=True).order_by("username")
        self.fields["user"].queryset = people if user.is_superuser else people.filter(pk=user.pk)
        self.initial.setdefault("user", user.get_username())

    def clean_allowed_networks(self) -> list[str] | None:
        return _networks_of(self.cleaned_data["allowed_networks"])


class RotateForm(PageForm):
    """For how long the secret before stays good."""

    OVERLAPS = (
        *(("0", "it ends at once"), ("3600", "an hour"), ("86400", "a day"), ("604800", "a week")),
        ("2592000", "30 days"),
    )

    overlap_s = forms.ChoiceField(choices=OVERLAPS, initial="86400", label="The secret before stays good for")


class KeyChangeForm(KeyForm):
    """A key keeps its project."""

    project = None


class ProjectForm(LimitsForm):
    """A project and its limits."""

    name = forms.CharField(max_length=80)
    description = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 2}))
    active = forms.BooleanField(required=False, initial=True, help_text="Off: all its keys are refused.")
    priority = forms.IntegerField(
        min_value=1,
        max_value=HIGHEST_PRIORITY,
        initial=1,
        help_text="Its turns while requests wait for full engines: 4 gets four where 1 gets one.",
    )

    request_log_days = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=MOST_LOG_DAYS,
        label="Keep requests and answers (days)",
        help_text="On the gateways' disks; empty: nothing is kept. Its members see that it is on.",
    )
    request_log_redact = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": r"[\w.+-]+@[\w-]+\.[\w.]+"}),
        label="Replace in what is kept",
        help_text="One RE2 pattern a line: what it matches becomes [redacted].",
    )

    guard_url = forms.CharField(
        required=False,
        max_length=500,
        label="Guard",
        widget=forms.TextInput(attrs={"placeholder": "https://guard.example.org/check"}),
        help_text="A service that sees each request first, and lets it pass, changes it, or stops it; empty: none.",
    )
    guard_timeout_ms = forms.IntegerField(
        required=False, min_value=1, max_value=LONGEST_GUARD_MS, initial=2000, label="Time for the guard (ms)"
    )
    guard_fail_open = forms.BooleanField(
        required=False, label="Go on without it", help_text="Off: without the guard's word a request gets 503."
    )

    field_order = (
        *("name", "description", "active", "priority", "request_log_days", "request_log_redact"),
        *("guard_url", "guard_timeout_ms", "guard_fail_open"),
    )

    def clean_request_log_redact(self) -> list[str]:
        try:
            return checked_patterns(self.cleaned_data["request_log_redact"].splitlines())
        except InvalidRequestLog as error:
            raise forms.ValidationError(f"{error.message} {error.remedy}") from error

    def clean_guard_timeout_ms(self) -> int:
        return int(self.cleaned_data["guard_timeout_ms"] or self.fields["guard_timeout_ms"].initial)

    def settings(self) -> dict[str, Any]:
        """All fields but the limits, as the services take them."""
        return {name: value for name, value in self.cleaned_data.items() if name not in LIMIT_FIELDS}


def project_initial(row: Project) -> dict[str, Any]:
    """What the form of a project shows of it."""
    fields = (
        *("name", "description", "active", "priority", "request_log_days"),
        *("guard_url", "guard_timeout_ms", "guard_fail_open"),
    )
    shown = {name: getattr(row, name) for name in fields}
    return {**limits_initial(row), **shown, "request_log_redact": "\n".join(row.request_log_redact)}


class ModelQuotaForm(LimitsForm):
    """Limits of a project's use of one model."""

    model = forms.ChoiceField()

    field_order = ("model",)

    def __init__(self, *args: Any, quota: ModelQuota | None, **kwargs: Any) -> None:
        super().__init__(*args, initial=None if quota is None else limits_initial(quota), **kwargs)
        if quota is not None:
            del self.fields["model"]  # a quota keeps its model
        else:
            self.fields["model"].choices = [(name, name) for name in public_names()]


class MemberForm(PageForm):
    """A person and their role in a project."""

    user = forms.ModelChoiceField(get_user_model().objects.none(), empty_label="Choose a person")
    role = forms.ChoiceField(choices=ProjectRole.choices, initial=ProjectRole.MEMBER)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["user"].queryset = get_user_model().objects.filter(is_active=True).order_by("username")


def public_names() -> list[str]:
    """Names of the deployments there are; by name, as this app knows nothing of deployments."""
    rows = apps.get_model("deployments", "Deployment").objects.filter(deleted_at__isnull=True)
    return list(rows.order_by("name").values_list("name", flat=True))


class UsageFilter(PageForm):
    """What the usage page sums."""

    PERIODS = (("1", "last 24 hours"), ("7", "last 7 days"), ("30", "last 30 days"), ("90", "last 90 days"))
    BY = (
        ("day", "day"),
        ("hour", "hour"),
        ("model", "model"),
        ("key", "key"),
        ("project", "project"),
        ("status", "status"),
    )
    SPLIT = (("", "nothing"), ("project", "project"), ("key", "key"), ("model", "model"))
    STEP = (("", "as fits"), ("hour", "an hour"), ("day", "a day"))

    days = forms.ChoiceField(choices=PERIODS, required=False, label="Period")
    by = forms.ChoiceField(choices=BY, required=False, label="Rows by")
    project = forms.ModelChoiceField(Project.objects.none(), required=False, empty_label="all projects")
    key = forms.ModelChoiceField(ApiKey.objects.none(), required=False, empty_label="all keys")
    model = forms.ChoiceField(required=False)
    split = forms.ChoiceField(choices=SPLIT, required=False, label="Charts split by")
    step = forms.ChoiceField(choices=STEP, required=False, label="Each bar")

    def __init__(self, user: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        projects = projects_with_visible_usage(user)
        self.fields["project"].queryset = projects
        self.fields["key"].queryset = ApiKey.objects.filter(project__in=projects)
        models = UsageHour.objects.filter(project__in=projects).order_by("model").values_list("model", flat=True)
        self.fields["model"].choices = [("", "all models"), *((name, name) for name in models.distinct())]
        for field in self.fields.values():
            field.widget.attrs["data-submit-on-change"] = ""
