"""Forms of keys, projects and usage."""

from __future__ import annotations

from typing import Any

from django import forms
from django.apps import apps
from django.contrib.auth import get_user_model
from django.db.models import QuerySet

from apikeys.access import projects_with_visible_usage
from apikeys.models import ApiKey, Project, ProjectRole, UsageHour
from apikeys.services import LIMIT_FIELDS
from templates.forms import PageForm


class LimitsForm(PageForm):
    """The quota fields; empty does not limit."""

    requests_per_minute = forms.IntegerField(required=False, min_value=1)
    tokens_per_minute = forms.IntegerField(required=False, min_value=1)
    parallel_requests = forms.IntegerField(required=False, min_value=1)
    tokens_per_day = forms.IntegerField(required=False, min_value=1, help_text="UTC day.")
    tokens_per_month = forms.IntegerField(required=False, min_value=1, help_text="UTC month.")

    def limits(self) -> dict[str, int | None]:
        return {name: self.cleaned_data[name] for name in LIMIT_FIELDS}

    def limit_fields(self) -> list[Any]:
        return [self[name] for name in LIMIT_FIELDS]

    def main_fields(self) -> list[Any]:
        return [field for field in self.visible_fields() if field.name not in LIMIT_FIELDS]


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
    expires_at = forms.DateTimeField(
        required=False,
        label="Expires (UTC)",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        help_text="Empty: never.",
    )

    field_order = ("project", "name", "allowed_models", "expires_at")

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "project" in self.fields:
            self.fields["project"].queryset = projects.filter(active=True)
        chosen = (self.initial or {}).get("allowed_models") or []
        self.fields["allowed_models"].choices = [(name, name) for name in sorted({*public_names(), *chosen})]


class KeyChangeForm(KeyForm):
    """A key keeps its project."""

    project = None


class ProjectForm(LimitsForm):
    """A project and its limits."""

    name = forms.CharField(max_length=80)
    description = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 2}))
    active = forms.BooleanField(required=False, initial=True, help_text="Off: all its keys are refused.")

    field_order = ("name", "description", "active")


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
    BY = (("day", "day"), ("hour", "hour"), ("model", "model"), ("key", "key"), ("project", "project"))
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
