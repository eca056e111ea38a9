"""Deployments, their immutable revisions, the instances that serve them, and the events that tell what happened."""

from __future__ import annotations

from django.core.validators import MaxValueValidator, RegexValidator
from django.db import models
from django.db.models import Q

from fleet.models import Server, make_id
from models_registry.models import ModelAlias, ModelVersion
from wire.engine import RuntimeKind
from wire.messages import InstanceState

PUBLIC_NAME = RegexValidator(
    r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,119}$", "Letters, digits, '.', '_', ':', '-' and '/', at most 120."
)


def make_instance_id() -> str:
    return make_id("i")


class Deployment(models.Model):
    """What should serve under a public model name. What is decided is here; what is, is derived from instances."""

    name = models.CharField(
        max_length=120, validators=[PUBLIC_NAME], help_text="Public model name, as sent by clients."
    )
    description = models.TextField(blank=True)
    replicas = models.PositiveIntegerField(default=1, validators=[MaxValueValidator(1000)])
    running = models.BooleanField(default=True, help_text="Off: stopped, replicas kept for the next start.")
    revision = models.ForeignKey("Revision", null=True, on_delete=models.PROTECT, related_name="+", editable=False)
    alias = models.ForeignKey(
        ModelAlias,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="followers",
        help_text="A deployment that follows an alias gets a new revision when the alias moves.",
    )
    version = models.PositiveBigIntegerField(default=1, editable=False)  # rises with every change: the API's ETag
    explanation = models.TextField(blank=True, editable=False)  # why it is not where it should be; by the controller
    refusals = models.JSONField(default=dict, editable=False)  # server name -> why not placed there
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)  # going away: row ends with its instances

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(
                fields=["name"], condition=Q(deleted_at__isnull=True), name="one_live_deployment_a_name"
            )
        ]

    def __str__(self) -> str:
        return self.name


class Revision(models.Model):
    """An immutable spec of a deployment."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="revisions")
    number = models.PositiveIntegerField()
    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="revisions")
    engine = models.CharField(max_length=20)  # name of an adapter in deployments.engines
    runtime = models.CharField(
        max_length=8, choices=[(kind.value, kind.value) for kind in RuntimeKind], default=RuntimeKind.AUTO.value
    )
    image = models.CharField(max_length=300, blank=True, help_text="Empty: the adapter's own.")
    parameters = models.JSONField(default=dict, blank=True)  # checked by the adapter's schema
    placement = models.JSONField(default=dict, blank=True)  # {"labels": {...}, "servers": [names], "gpus": n}
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering = ["deployment", "-number"]
        constraints = [models.UniqueConstraint(fields=["deployment", "number"], name="one_revision_a_number")]

    def __str__(self) -> str:
        return f"{self.deployment.name} r{self.number}"


class Phase(models.TextChoices):
    """What the controller wants of an instance."""

    RUN = "run", "run"  # in the desired state; in the route as soon as it is ready
    DRAIN = "drain", "drain"  # still in the desired state, out of the route; until no request is in flight
    STOP = "stop", "stop"  # out of the desired state; until the agent says it is gone
    ENDED = "ended", "ended"  # gone; kept for history


class Instance(models.Model):
    """One engine process of a revision on one server. Placed and ended by the controller only."""

    id = models.CharField(primary_key=True, max_length=32, default=make_instance_id, editable=False)
    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="instances")
    revision = models.ForeignKey(Revision, on_delete=models.CASCADE, related_name="instances")
    server = models.ForeignKey(Server, null=True, on_delete=models.SET_NULL, related_name="instances")
    gpu_indexes = models.JSONField(default=list)
    memory_bytes = models.BigIntegerField(default=0)  # reserved: host memory, or on each of its GPUs
    gpu_memory_bytes = models.BigIntegerField(default=0)
    placement_reason = models.TextField(blank=True)
    phase = models.CharField(max_length=8, choices=Phase, default=Phase.RUN)
    phase_since = models.DateTimeField()
    phase_reason = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True)
    # observed, from the agent
    state = models.CharField(
        max_length=10,
        choices=[(state.value, state.value) for state in InstanceState],
        default=InstanceState.PENDING.value,
    )
    reason = models.TextField(blank=True)
    state_since = models.DateTimeField(null=True)
    observed_at = models.DateTimeField(null=True)
    runtime = models.CharField(max_length=8, blank=True)
    unit_id = models.CharField(max_length=80, blank=True)
    port = models.PositiveIntegerField(default=0)
    restarts = models.PositiveIntegerField(default=0)
    progress = models.FloatField(default=0)
    used_memory_bytes = models.BigIntegerField(default=0)
    exits = models.JSONField(default=list)  # wire.messages.LastExit, newest last

    class Meta:
        ordering = ["deployment", "created_at"]
        indexes = [models.Index(fields=["phase"], condition=~Q(phase="ended"), name="instance_live")]

    def __str__(self) -> str:
        return self.id


class Severity(models.TextChoices):
    INFO = "info", "info"
    WARNING = "warning", "warning"
    ERROR = "error", "error"


class Event(models.Model):
    """Something that happened, in a sentence, with what to do about it."""

    at = models.DateTimeField(db_index=True)
    severity = models.CharField(max_length=8, choices=Severity, default=Severity.INFO)
    kind = models.CharField(max_length=60)  # e.g. instance.ready, server.lost, fleet.mass_loss
    message = models.TextField()
    remedy = models.TextField(blank=True)
    details = models.JSONField(default=dict, blank=True)
    deployment = models.ForeignKey(Deployment, null=True, blank=True, on_delete=models.CASCADE, related_name="events")
    instance = models.ForeignKey(Instance, null=True, blank=True, on_delete=models.SET_NULL, related_name="events")
    server = models.ForeignKey(Server, null=True, blank=True, on_delete=models.SET_NULL, related_name="events")

    class Meta:
        ordering = ["-at", "-id"]

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Leader(models.Model):
    """The one row that a controller must hold to decide anything."""

    name = models.CharField(primary_key=True, max_length=20, default="controller")
    holder = models.CharField(max_length=80, blank=True)
    since = models.DateTimeField(null=True)
    renewed_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)
    ticked_at = models.DateTimeField(null=True)  # end of the last complete pass

    def __str__(self) -> str:
        return self.holder


# ------------------------------------------------------------------------------------------------ routing


class Provider(models.Model):
    """An OpenAI-compatible service outside, that routes may use."""

    name = models.SlugField(max_length=60, unique=True)
    base_url = models.CharField(max_length=300)  # before `/chat/completions`, e.g. https://api.example.com/v1
    sealed_key = models.TextField(blank=True, editable=False)  # `fleet.sealed`
    endpoints = models.JSONField(default=list)  # of wire.feed.ENDPOINT_GROUPS
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Route(models.Model):
    """A public model name whose requests go to others: shares by weight, then fallbacks."""

    name = models.CharField(max_length=120, unique=True, validators=[PUBLIC_NAME])
    description = models.TextField(blank=True)
    listed = models.BooleanField(default=True, help_text="Off: clients cannot ask for it; other routes use it.")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class TargetKind(models.TextChoices):
    SHARE = "share", "share"  # of the requests, by weight
    FALLBACK = "fallback", "fallback"  # when no share can take a request


class RouteTarget(models.Model):
    """Where requests of a route go: exactly one of a deployment, another route, or a provider's model."""

    route = models.ForeignKey(Route, on_delete=models.CASCADE, related_name="targets")
    kind = models.CharField(max_length=8, choices=TargetKind, default=TargetKind.SHARE)
    position = models.PositiveIntegerField(default=0)
    weight = models.PositiveIntegerField(default=1, validators=[MaxValueValidator(10_000)])
    deployment = models.ForeignKey(Deployment, null=True, on_delete=models.CASCADE, related_name="routed_by")
    to = models.ForeignKey(Route, null=True, on_delete=models.PROTECT, related_name="routed_by")
    provider = models.ForeignKey(Provider, null=True, on_delete=models.PROTECT, related_name="routed_by")
    provider_model = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["route", "position"]
        constraints = [
            models.CheckConstraint(
                name="one_target",
                condition=Q(deployment__isnull=False, to__isnull=True, provider__isnull=True)
                | Q(deployment__isnull=True, to__isnull=False, provider__isnull=True)
                | Q(deployment__isnull=True, to__isnull=True, provider__isnull=False),
            )
        ]

    def __str__(self) -> str:
        return self.target

    @property
    def target(self) -> str:
        """`deployment chat`, `route canary`, `provider openai: gpt-x`."""
        if self.deployment is not None:
            return f"deployment {self.deployment.name}"
        if self.to is not None:
            return f"route {self.to.name}"
        return f"provider {self.provider.name}: {self.provider_model}" if self.provider is not None else ""


class ModelPrice(models.Model):
    """What tokens of a public name cost: nano-units of the currency per 1,000 tokens."""

    name = models.CharField(max_length=120, unique=True)
    prompt = models.PositiveBigIntegerField(default=0)
    cached = models.PositiveBigIntegerField(default=0)  # of prompt tokens found in the engine's cache
    completion = models.PositiveBigIntegerField(default=0)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
