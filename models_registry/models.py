"""Models and their immutable versions. The files lie in the content-addressed store (`store.py`), not in rows."""

from __future__ import annotations

from django.core.validators import RegexValidator
from django.db import models

from models_registry.location_models import StorageLocation

NAME = RegexValidator(
    r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,119}\Z",
    "Letters, digits, '.', '_', '-' and '/', at most 120, first a letter or digit.",
)


class Model(models.Model):
    """A family of versions under one name."""

    name = models.CharField(max_length=120, unique=True, validators=[NAME])
    description = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class VersionState(models.TextChoices):
    IMPORTING = "importing", "importing"
    READY = "ready", "ready"
    FAILED = "failed", "failed"


class Format(models.TextChoices):
    GGUF = "gguf", "GGUF"
    SAFETENSORS = "safetensors", "safetensors"
    OTHER = "other", "other"


class ModelVersion(models.Model):
    """One manifest of files. Immutable once READY."""

    model = models.ForeignKey(Model, on_delete=models.PROTECT, related_name="versions")
    version = models.CharField(max_length=40, validators=[RegexValidator(r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")])
    state = models.CharField(max_length=10, choices=VersionState, default=VersionState.IMPORTING)
    progress = models.FloatField(default=0, help_text="Share of bytes taken in, 0 to 1.")
    error = models.TextField(blank=True)
    source = models.CharField(max_length=500, blank=True, help_text="Where it came from.")
    manifest = models.JSONField(default=dict)  # wire.manifest.Manifest
    digest = models.CharField(max_length=64, blank=True, db_index=True)
    size_bytes = models.BigIntegerField(default=0)
    format = models.CharField(max_length=12, choices=Format, default=Format.OTHER)
    architecture = models.CharField(max_length=80, blank=True)
    parameter_count = models.BigIntegerField(null=True)
    context_tokens = models.IntegerField(null=True, help_text="Context the model was trained for.")
    layers = models.IntegerField(null=True)
    hidden_size = models.IntegerField(null=True)
    heads = models.IntegerField(null=True)
    kv_heads = models.IntegerField(null=True)
    head_dim = models.IntegerField(null=True)
    quantization = models.CharField(max_length=40, blank=True)
    metadata = models.JSONField(default=dict, blank=True)  # what else the headers say: small values only
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["model__name", "-created_at"]
        constraints = [models.UniqueConstraint(fields=["model", "version"], name="one_version_of_a_name")]

    def __str__(self) -> str:
        return f"{self.model.name}:{self.version}"


class HubToken(models.Model):
    """A token of somebody's account at a Hub: opens what is gated or private."""

    name = models.CharField(max_length=80, unique=True)
    sealed_token = models.TextField(editable=False)  # fleet.sealed
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class ImportJob(models.Model):
    """An import under way: what a worker needs to do it, or to do it again when another one was lost.

    `started_at` is None while it waits for a worker. Whether the worker that has it lives, `Store.import_lock` tells.
    """

    version = models.OneToOneField(ModelVersion, primary_key=True, on_delete=models.CASCADE, related_name="job")
    path = models.TextField(blank=True)
    hub = models.JSONField(null=True)  # models_registry.hub.imports.Spec, when it is fetched from a Hub
    token = models.ForeignKey(HubToken, null=True, on_delete=models.SET_NULL)
    paused = models.BooleanField(default=False)
    cancelled = models.BooleanField(default=False)
    limit_bytes_per_second = models.PositiveBigIntegerField(null=True)
    detail = models.JSONField(default=dict)  # models_registry.hub.imports.Detail: how far it is
    touched_at = models.DateTimeField(null=True)  # when `detail` was written
    seen_bytes = models.BigIntegerField(default=0)  # there when the last attempt began
    link = models.BooleanField(default=False)
    upload = models.BooleanField(default=False)  # `path` is a kept upload: it goes with the job
    attempts = models.PositiveSmallIntegerField(default=0)
    queued_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    location = models.ForeignKey(StorageLocation, null=True, on_delete=models.SET_NULL)  # where to; None: the built-in
    in_place = models.BooleanField(default=False, db_default=False)  # `path` stays where it is: nothing is copied

    def __str__(self) -> str:
        return f"import of {self.version}"
