"""The deploy form: what is common to all engines, and the fields that an engine's typed schema asks for."""

from __future__ import annotations

from typing import Any

from django import forms

from deployments import engines
from deployments.engines.base import BadParameters, Parameter, ParameterType
from deployments.models import PUBLIC_NAME, Revision
from models_registry.models import ModelAlias, ModelVersion, VersionState
from templates.forms import PageForm
from wire.engine import RuntimeKind

PREFIX = "p-"  # parameters, apart from the fields of the deployment itself


def field_of(parameter: Parameter) -> forms.Field:
    """A form field for one typed parameter. Empty means: the default."""
    default = parameter.default
    shown = "" if default in (None, (), []) else f"default {default}"
    attrs = {"placeholder": shown} if shown else {}
    common: dict[str, Any] = {"required": False, "label": parameter.title, "help_text": parameter.help}
    if parameter.type is ParameterType.BOOLEAN:
        words = {True: "yes", False: "no"}
        empty = f"default ({words[bool(default)]})"
        return forms.ChoiceField(choices=[("", empty), ("true", "yes"), ("false", "no")], **common)
    if parameter.choices:
        empty = f"default ({default})" if default is not None else "default"
        return forms.ChoiceField(choices=[("", empty), *((one, one) for one in parameter.choices)], **common)
    if parameter.type is ParameterType.INTEGER:
        limits = {"min_value": parameter.minimum, "max_value": parameter.maximum}
        return forms.IntegerField(widget=forms.NumberInput(attrs=attrs), **_whole(limits), **common)
    if parameter.type is ParameterType.NUMBER:
        widget = forms.NumberInput(attrs={**attrs, "step": "any"})
        return forms.FloatField(min_value=parameter.minimum, max_value=parameter.maximum, widget=widget, **common)
    if parameter.type is ParameterType.LIST:
        return forms.CharField(widget=forms.Textarea(attrs={"rows": 2}), **common)
    return forms.CharField(widget=forms.TextInput(attrs=attrs), **common)


def _whole(limits: dict[str, float | None]) -> dict[str, int | None]:
    return {name: None if value is None else int(value) for name, value in limits.items()}


class DeployForm(PageForm):
    """Fields of a deployment and of its engine's parameters."""

    name = forms.CharField(
        max_length=120,
        validators=[PUBLIC_NAME],
        label="Public model name",
        help_text="What clients send as `model`.",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    model_version = forms.ModelChoiceField(
        ModelVersion.objects.none(), label="Model", empty_label="Choose a model", required=False
    )
    alias = forms.ModelChoiceField(
        ModelAlias.objects.none(),
        required=False,
        label="Or follow an alias",
        empty_label="no: stay at that version",
        help_text="When the alias moves, what it moves to rolls out by itself.",
    )
    engine = forms.ChoiceField(choices=())
    replicas = forms.IntegerField(min_value=0, max_value=1000, initial=1, label="Instances")
    description = forms.CharField(required=False, max_length=500)
    runtime = forms.ChoiceField(
        choices=[(kind.value, kind.value) for kind in RuntimeKind],
        required=False,
        initial=RuntimeKind.AUTO.value,
        help_text="auto: docker where the image is or can be had, else a process.",
    )
    image = forms.CharField(required=False, max_length=300, help_text="Empty: the engine's own.")
    servers = forms.CharField(required=False, help_text="Names, separated by commas. Empty: any server.")
    labels = forms.CharField(required=False, help_text="`name=value`, separated by commas: only servers with them.")
    gpus = forms.IntegerField(
        required=False,
        min_value=0,
        max_value=64,
        label="GPUs per instance",
        help_text="Empty: as the engine sees fit; 0: CPU only.",
    )

    MAIN = ("name", "model_version", "alias", "engine", "replicas", "description")
    PLACE = ("gpus", "servers", "labels", "runtime", "image")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = engines.names()
        self.fields["engine"].choices = [(name, engines.get(name).title) for name in names]
        asked = (self.data.get("engine") if self.is_bound else self.initial.get("engine")) or names[0]
        self.engine_name = asked if asked in names else names[0]
        self.schema = engines.get(self.engine_name).schema
        for parameter in self.schema.parameters:
            self.fields[PREFIX + parameter.name] = field_of(parameter)
        ready = ModelVersion.objects.filter(state=VersionState.READY).select_related("model")
        self.fields["model_version"].queryset = ready.defer("manifest", "metadata")
        self.fields["alias"].queryset = ModelAlias.objects.select_related("model")

    def main_fields(self) -> list[Any]:
        return [self[name] for name in self.MAIN if name in self.fields]

    def place_fields(self) -> list[Any]:
        return [self[name] for name in self.PLACE]

    def place_open(self) -> bool:
        return any(self[name].errors or self[name].value() not in (None, "", "auto") for name in self.PLACE)

    def groups(self) -> list[dict[str, Any]]:
        """Parameters in groups, the advanced ones apart."""
        found: dict[str, dict[str, Any]] = {}
        for parameter in self.schema.parameters:
            group = found.setdefault(
                parameter.group, {"title": parameter.group, "plain": [], "advanced": [], "open": False}
            )
            field = self[PREFIX + parameter.name]
            group["advanced" if parameter.advanced else "plain"].append(field)
            if parameter.advanced and (field.errors or field.value() not in (None, "")):
                group["open"] = True
        return list(found.values())

    def clean_servers(self) -> list[str]:
        return [name.strip() for name in self.cleaned_data["servers"].split(",") if name.strip()]

    def clean_labels(self) -> dict[str, str]:
        labels = {}
        for pair in (text.strip() for text in self.cleaned_data["labels"].split(",")):
            if not pair:
                continue
            name, found, value = pair.partition("=")
            if not found or not name.strip():
                raise forms.ValidationError(f"{pair!r} is not `name=value`.")
            labels[name.strip()] = value.strip()
        return labels

    def clean(self) -> dict[str, Any]:
        found = super().clean()
        self.parameters: dict[str, Any] = {}
        for parameter in self.schema.parameters:
            value = found.get(PREFIX + parameter.name)
            if value in (None, "", []):
                continue
            try:
                kept = self.schema.parse(parameter.name, value) if isinstance(value, str) else value
            except BadParameters as error:
                self.add_error(PREFIX + parameter.name, error.errors[parameter.name])
            else:
                self.parameters[parameter.name] = kept
        if not {"model_version", "alias"} & set(self.errors) and not (found["model_version"] or found["alias"]):
            self.add_error("model_version", "Choose a model, or an alias.")
        return found

    def spec(self) -> dict[str, Any]:
        """What services take, but for the name. The form must be valid."""
        asked = self.cleaned_data
        placement: dict[str, Any] = {}
        if asked["labels"]:
            placement["labels"] = asked["labels"]
        if asked["servers"]:
            placement["servers"] = asked["servers"]
        if asked["gpus"] is not None:
            placement["gpus"] = asked["gpus"]
        return {
            "model_version": None if asked["alias"] else asked["model_version"],
            "alias": asked["alias"],
            "engine": asked["engine"],
            "replicas": asked["replicas"],
            "parameters": self.parameters,
            "runtime": asked["runtime"] or RuntimeKind.AUTO.value,
            "image": asked["image"],
            "placement": placement,
        }

    def tell(self, error: Exception) -> bool:
        """Puts an error of a service at the fields that it names; False when it is not such an error."""
        errors = getattr(error, "details", {}).get("errors")
        if not errors:
            return False
        for name, problem in errors.items():
            if isinstance(problem, dict):
                for parameter, text in problem.items():
                    self.add_error(PREFIX + parameter if PREFIX + parameter in self.fields else None, text)
            else:
                self.add_error(
                    name if name in self.fields else None, f"{name}: {problem}" if name not in self.fields else problem
                )
        return True


class UpdateForm(DeployForm):
    """An existing deployment: its name stays; `version` is what the person looked at."""

    name = None
    version = forms.IntegerField(widget=forms.HiddenInput)


def initial_of(deployment: Any) -> dict[str, Any]:
    """What an update form shows at first."""
    revision: Revision = deployment.revision
    placement = revision.placement
    found = {
        "version": deployment.version,
        "model_version": None if deployment.alias_id else revision.model_version_id,
        "alias": deployment.alias_id,
        "engine": revision.engine,
        "replicas": deployment.replicas,
        "description": deployment.description,
        "runtime": revision.runtime,
        "image": revision.image,
        "servers": ", ".join(placement.get("servers") or []),
        "labels": ", ".join(f"{name}={value}" for name, value in (placement.get("labels") or {}).items()),
        "gpus": placement.get("gpus"),
    }
    for name, value in revision.parameters.items():
        shown = "\n".join(value) if isinstance(value, list) else value
        found[PREFIX + name] = str(shown).lower() if isinstance(shown, bool) else shown
    return found
