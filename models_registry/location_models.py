"""Rows of where the master keeps models: locations, which version lies in which, and the work on them."""

from __future__ import annotations

import uuid
from pathlib import Path

from django.conf import settings
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

OWN_FOLDER = ".stokehold"
"""On shared storage our own store lies in a folder of this name, one of its own for each installation."""


class LocationKind(models.TextChoices):
    STORE = "store", "store of ours"
    SHARED = "shared", "shared folder"


class StorageLocation(models.Model):
    """A place on the master's machine where versions lie.

    The built-in one is `MODEL_STORE_DIR`, wherever that is now: its `path` is empty, use `root`.
    """

    name = models.CharField(
        max_length=60,
        unique=True,
        validators=[RegexValidator(r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", "Letters, digits, '.', '_' and '-'.")],
    )
    uid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    kind = models.CharField(max_length=10, choices=LocationKind, default=LocationKind.STORE)
    path = models.CharField(max_length=1000, unique=True, blank=True)
    server_path = models.CharField(max_length=1000, blank=True, help_text="Where servers see it; empty: the same.")
    quota_bytes = models.PositiveBigIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    read_only = models.BooleanField(default=False)
    is_default = models.BooleanField(default=False, help_text="Imports go here when nobody says where.")
    builtin = models.BooleanField(default=False, editable=False)
    marker = models.CharField(max_length=80, blank=True, editable=False)  # content of its marker file; '': never marked
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    looked_at = models.DateTimeField(null=True, editable=False)
    reachable = models.BooleanField(default=True, editable=False)
    error = models.TextField(blank=True, editable=False)
    free_bytes = models.BigIntegerField(null=True, editable=False)
    total_bytes = models.BigIntegerField(null=True, editable=False)
    used_bytes = models.BigIntegerField(default=0, editable=False, help_text="Of files that are ours.")
    counted = models.CharField(max_length=40, blank=True, editable=False)  # which copies `used_bytes` is of

    class Meta:
        ordering = ["-builtin", "name"]
        constraints = [
            models.UniqueConstraint(fields=["is_default"], condition=Q(is_default=True), name="one_default_location"),
            models.UniqueConstraint(fields=["builtin"], condition=Q(builtin=True), name="one_builtin_location"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def root(self) -> Path:
        return Path(settings.MODEL_STORE_DIR) if self.builtin else Path(self.path)

    @property
    def store_root(self) -> Path:
        """Where our own, content-addressed files lie."""
        return self.root if self.kind == LocationKind.STORE else self.root / OWN_FOLDER / self.uid.hex

    @property
    def disk_used_bytes(self) -> int | None:
        """Of the whole disk, by whomever."""
        return None if self.total_bytes is None or self.free_bytes is None else self.total_bytes - self.free_bytes

    @property
    def seen_root(self) -> Path:
        """`root` as servers see it."""
        return Path(self.server_path) if self.server_path else self.root


class CopyState(models.TextChoices):
    WHOLE = "whole", "whole"
    PARTIAL = "partial", "partial"  # some files are not there (yet)
    DAMAGED = "damaged", "damaged"
    MISSING = "missing", "missing"


class VersionCopy(models.Model):
    """A version as it lies in one location: in our store there, or in place in a folder that is somebody else's.

    No constraint of the database on `version`: the previous release deletes versions, and knows of no copies.
    """

    version = models.ForeignKey(
        "models_registry.ModelVersion", on_delete=models.CASCADE, related_name="copies", db_constraint=False
    )
    location = models.ForeignKey(StorageLocation, on_delete=models.PROTECT, related_name="copies")
    state = models.CharField(max_length=10, choices=CopyState, default=CopyState.WHOLE)
    in_place = models.BooleanField(default=False)
    folder = models.CharField(max_length=1000, blank=True)  # of one in place, relative to the location
    bad = models.JSONField(default=list, blank=True)  # [{"path", "sha256", "problem"}]
    problem = models.TextField(blank=True)
    verified_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["location__name"]
        constraints = [models.UniqueConstraint(fields=["version", "location"], name="one_copy_in_a_location")]

    def __str__(self) -> str:
        return f"{self.version} in {self.location}"

    @property
    def path(self) -> Path:
        """The folder with the version's files under their own names."""
        if self.in_place:
            return self.location.root / self.folder
        return self.location.store_root / "versions" / self.version.digest

    @property
    def seen_path(self) -> Path:
        """`path` as servers see it."""
        return self.location.seen_root / self.path.relative_to(self.location.root)


class InPlaceFile(models.Model):
    """A file of a copy in place, as it was when it was hashed: what differs from this later has been changed."""

    copy = models.ForeignKey(VersionCopy, on_delete=models.CASCADE, related_name="files")
    path = models.CharField(max_length=1000)
    sha256 = models.CharField(max_length=64, db_index=True)
    size_bytes = models.BigIntegerField()
    mtime_ns = models.BigIntegerField()
    inode = models.CharField(max_length=24)  # unsigned, 64 bits: more than every database can count

    class Meta:
        constraints = [models.UniqueConstraint(fields=["copy", "path"], name="one_file_of_a_path")]

    def __str__(self) -> str:
        return self.path


class JobKind(models.TextChoices):
    COPY = "copy", "copy"
    MOVE = "move", "move"
    VERIFY = "verify", "verify"


class JobState(models.TextChoices):
    QUEUED = "queued", "queued"
    RUNNING = "running", "running"
    DONE = "done", "done"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "cancelled"


UNDER_WAY = (JobState.QUEUED, JobState.RUNNING)


class StorageJob(models.Model):
    """Work on a copy, done by a worker, and by another one when the first was lost. `location`: where to, or of what.

    `detail` of a verification: how many files are done (`next`), and which of them are `bad`.
    """

    kind = models.CharField(max_length=10, choices=JobKind)
    version = models.ForeignKey(
        "models_registry.ModelVersion", on_delete=models.CASCADE, related_name="storage_jobs", db_constraint=False
    )
    location = models.ForeignKey(StorageLocation, on_delete=models.CASCADE, related_name="jobs")
    source = models.ForeignKey(StorageLocation, null=True, on_delete=models.CASCADE, related_name="jobs_from")
    state = models.CharField(max_length=10, choices=JobState, default=JobState.QUEUED)
    error = models.TextField(blank=True)
    done_bytes = models.BigIntegerField(default=0)
    total_bytes = models.BigIntegerField(default=0)
    seen_bytes = models.BigIntegerField(default=0)  # done when the last attempt began
    detail = models.JSONField(default=dict, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0)
    queued_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["version"], condition=Q(state__in=["queued", "running"]), name="one_storage_job_of_a_version"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.version} ({self.location})"

    @property
    def share(self) -> float:
        """Done of it, 0 to 1."""
        return self.done_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def is_under_way(self) -> bool:
        return self.state in UNDER_WAY
