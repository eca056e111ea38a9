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
    notes = models.TextField(blank=True, db_default="")
    tags = models.CharField(max_length=1000, blank=True, db_default="", editable=False)  # models_registry.tags
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
    active_parameter_count = models.BigIntegerField(null=True, help_text="Used for one token, where it has experts.")
    modality = models.CharField(max_length=60, blank=True, db_default="", help_text="What goes in, or comes out.")
    scan = models.JSONField(null=True, help_text="models_registry.inspect.scanner; null: not looked through yet.")
    flagged = models.BooleanField(null=True, help_text="Whether a file of it can run code when it is loaded.")
    pickle_allowed_by = models.CharField(max_length=150, blank=True, db_default="")
    pickle_allowed_at = models.DateTimeField(null=True)
    license = models.CharField(max_length=200, blank=True, db_default="", help_text="As its source says it.")
    gated = models.BooleanField(default=False, db_default=False, help_text="Its source asks for acceptance of terms.")
    license_accepted_by = models.CharField(max_length=150, blank=True, db_default="")
    license_accepted_at = models.DateTimeField(null=True)
    imported_by = models.CharField(max_length=150, blank=True, db_default="")
    hub_token = models.ForeignKey("HubToken", null=True, on_delete=models.SET_NULL, related_name="+", editable=False)
    notes = models.TextField(blank=True, db_default="")
    tags = models.CharField(max_length=1000, blank=True, db_default="", editable=False)  # models_registry.tags
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["model__name", "-created_at"]
        constraints = [models.UniqueConstraint(fields=["model", "version"], name="one_version_of_a_name")]
        permissions = [("allow_pickle", "Can allow a version whose files can run code")]

    def __str__(self) -> str:
        return f"{self.model.name}:{self.version}"


class Pin(models.Model):
    """A READY version that a server (None: every server) should always have, whether it is used or not."""

    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="pins")
    server = models.ForeignKey("fleet.Server", null=True, on_delete=models.CASCADE, related_name="pins")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["version", "server"], name="one_pin_of_a_version_on_a_server"),
            models.UniqueConstraint(
                fields=["version"], condition=models.Q(server__isnull=True), name="one_pin_of_a_version_everywhere"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.version} on {self.server or 'every server'}"


class ModelAlias(models.Model):
    """A name that points at a READY version of a model. `latest`, unless pinned, follows the newest by itself."""

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=40)
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="aliases")
    pinned = models.BooleanField(default=True, help_text="Moved by hand only.")
    moved_by = models.CharField(max_length=150, blank=True)
    moved_at = models.DateTimeField()

    class Meta:
        ordering = ["model__name", "name"]
        constraints = [models.UniqueConstraint(fields=["model", "name"], name="one_alias_of_a_name")]

    def __str__(self) -> str:
        return f"{self.model.name}@{self.name}"


class AliasMove(models.Model):
    """Something that happened to an alias. Versions by their texts: they may be gone."""

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="alias_moves")
    name = models.CharField(max_length=40)
    at = models.DateTimeField()
    by = models.CharField(max_length=150, blank=True)
    from_version = models.CharField(max_length=40, blank=True)  # empty: it was made
    to_version = models.CharField(max_length=40, blank=True)  # empty: it was deleted
    pinned = models.BooleanField(default=True)

    class Meta:
        ordering = ["-at", "-id"]
        indexes = [models.Index(fields=["model", "name", "-at"], name="alias_history")]

    def __str__(self) -> str:
        return f"{self.name}: {self.from_version or 'nothing'} -> {self.to_version or 'nothing'}"


class HubToken(models.Model):
    """A token of somebody's account at a Hub: opens what is gated or private."""

    name = models.CharField(max_length=80, unique=True)
    project = models.CharField(
        max_length=36, blank=True, db_default="", help_text="Id of the project whose people use it; empty: everybody."
    )
    sealed_token = models.TextField(editable=False)  # fleet.sealed
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class ImportJob(models.Model):
    """An import under way: what a worker needs to do it, or to do it again when another one was lost.

    `started_at` is None while it waits for a worker, and while it is paused. Whether the worker that has it lives,
    `Store.import_lock` tells.
    """

    version = models.OneToOneField(ModelVersion, primary_key=True, on_delete=models.CASCADE, related_name="job")
    path = models.TextField(blank=True)
    hub = models.JSONField(null=True)  # models_registry.hub.imports.Spec, when it is fetched from a Hub
    token = models.ForeignKey(HubToken, null=True, on_delete=models.SET_NULL)
    remote = models.JSONField(null=True)  # models_registry.fetching.kinds: when it is fetched from anywhere else
    sealed_secret = models.TextField(default="", db_default="", editable=False)  # fleet.sealed, for `remote`
    priority = models.SmallIntegerField(default=0, db_default=0)  # higher ones first
    paused = models.BooleanField(default=False)
    cancelled = models.BooleanField(default=False)
    limit_bytes_per_second = models.PositiveBigIntegerField(null=True)
    detail = models.JSONField(default=dict)  # models_registry.fetching.work.Detail: how far it is
    touched_at = models.DateTimeField(null=True)  # when `detail` was written
    seen_bytes = models.BigIntegerField(default=0)  # there when the last attempt began
    link = models.BooleanField(default=False)
    upload = models.BooleanField(default=False)  # `path` is a kept upload: it goes with the job
    attempts = models.PositiveSmallIntegerField(default=0)
    queued_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    location = models.ForeignKey(StorageLocation, null=True, on_delete=models.SET_NULL)  # where to; None: the built-in
    in_place = models.BooleanField(default=False, db_default=False)  # `path` stays where it is: nothing is copied

    FETCHED = models.Q(hub__isnull=False) | models.Q(remote__isnull=False)
    """From elsewhere: it can be paused, limited and cancelled."""

    def __str__(self) -> str:
        return f"import of {self.version}"

    @property
    def is_fetched(self) -> bool:
        return self.hub is not None or self.remote is not None


class DownloadPolicy(models.Model):
    """How fast all fetches together may be, by the time of day. One row, or none: as fast as it goes."""

    schedule = models.CharField(max_length=500, blank=True)  # models_registry.fetching.schedule
    zone = models.CharField(max_length=80, default="UTC")  # name of a time zone

    def __str__(self) -> str:
        return self.schedule or "as fast as it goes"
