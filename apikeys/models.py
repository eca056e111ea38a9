"""Projects (tenants), their members and keys, quotas, and usage by hour."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models

from apikeys.money import from_nano


class Limits(models.Model):
    """A quota; empty fields do not limit. Days and months are UTC calendar ones."""

    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_minute = models.PositiveBigIntegerField(null=True, blank=True)
    parallel_requests = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True)
    tokens_per_month = models.PositiveBigIntegerField(null=True, blank=True)
    max_tokens_per_request = models.PositiveBigIntegerField(null=True, blank=True)  # prompt and completion
    cost_per_month = models.PositiveBigIntegerField(null=True, blank=True)  # nano-units of the currency

    class Meta:
        abstract = True


class Project(Limits):
    """A tenant."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=80, unique=True)
    description = models.TextField(blank=True)
    active = models.BooleanField(default=True, help_text="Off: all its keys are refused.")
    priority = models.PositiveSmallIntegerField(
        default=1, help_text="1 to 100: its share of the turns while requests wait for full engines."
    )
    request_log_days = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="Gateways keep its requests and answers for so many days; empty: not at all."
    )
    request_log_redact = models.JSONField(
        default=list, blank=True, help_text="RE2 patterns; what they match in kept texts is replaced."
    )
    guard_url = models.CharField(
        max_length=500, blank=True, help_text="A service that sees each request first; empty: none."
    )
    guard_timeout_ms = models.PositiveIntegerField(default=2000)
    guard_fail_open = models.BooleanField(default=False, help_text="Requests go on when it does not answer.")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True, db_index=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class ModelQuota(Limits):
    """Limits of a project's use of one model, besides those of the project and its keys."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="model_quotas")
    model = models.CharField(max_length=120, help_text="Public name; it may be deployed later.")
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["model"]
        constraints = [models.UniqueConstraint(fields=["project", "model"], name="one_quota_a_project_and_model")]

    def __str__(self) -> str:
        return f"{self.model} of {self.project_id}"


class ProjectRole(models.TextChoices):
    OWNER = "owner", "owner"
    MEMBER = "member", "member"


class Membership(models.Model):
    """A person's role in a project. Owners issue and revoke its keys; members see them and the usage."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=8, choices=ProjectRole, default=ProjectRole.MEMBER)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "user"], name="one_role_a_project")]

    def __str__(self) -> str:
        return f"{self.user} ({self.role} of {self.project})"


class ApiKey(Limits):
    """A client key `sk-stk-<id>-<secret>`. The whole key is shown once; only its keyed hash is kept."""

    id = models.CharField(primary_key=True, max_length=8, editable=False)  # the 8 characters after `sk-stk-`
    secret_hash = models.CharField(max_length=64, editable=False)  # hex HMAC-SHA256(pepper, whole key)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="keys")
    name = models.CharField(max_length=80)
    allowed_models = models.JSONField(null=True, blank=True, help_text="Public model names it may use; empty: all.")
    allowed_endpoints = models.JSONField(null=True, blank=True, help_text="Of wire.feed.ENDPOINT_GROUPS; empty: all.")
    allowed_networks = models.JSONField(null=True, blank=True, help_text="CIDRs clients come from; empty: any.")
    service = models.CharField(max_length=80, blank=True, help_text="Program it belongs to; empty: a person's key.")
    previous_hash = models.CharField(max_length=64, blank=True, editable=False)  # after a rotation, see the next
    previous_until = models.DateTimeField(null=True, editable=False)  # until then the secret before is good, too
    rotated_at = models.DateTimeField(null=True, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.CharField(max_length=150, blank=True, editable=False)
    updated_at = models.DateTimeField(auto_now=True, db_index=True)
    last_used_at = models.DateTimeField(null=True, editable=False)  # to the hour, from usage

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"

    @property
    def prefix(self) -> str:
        """The readable start of the key, by which people tell keys apart."""
        return f"sk-stk-{self.id}"


class ManagementKey(models.Model):
    """A person's credential `stk-mgmt-<id>-<secret>` for the REST API; shown once, kept as a keyed hash."""

    id = models.CharField(primary_key=True, max_length=8, editable=False)
    secret_hash = models.CharField(max_length=64, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="management_keys")
    name = models.CharField(max_length=80)
    read_only = models.BooleanField(default=True, help_text="It may look, and change nothing.")
    allowed_networks = models.JSONField(null=True, blank=True, help_text="CIDRs its clients come from; empty: any.")
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.CharField(max_length=150, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, editable=False)  # to ten minutes

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"

    @property
    def prefix(self) -> str:
        """The readable start of the key, by which people tell keys apart."""
        return f"stk-mgmt-{self.id}"


class UsageBatch(models.Model):
    """A delivered batch: its id makes delivery exactly-once. Old rows are deleted by a task."""

    batch_id = models.CharField(primary_key=True, max_length=80)
    received_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.batch_id


class UsageHour(models.Model):
    """Summed usage of one UTC hour x key x model x HTTP status."""

    hour = models.DateTimeField(db_index=True)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="usage")
    key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, related_name="usage")
    model = models.CharField(max_length=120)
    status = models.PositiveSmallIntegerField()
    requests = models.PositiveBigIntegerField(default=0)
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    duration_ms = models.PositiveBigIntegerField(default=0)
    ttft_ms = models.PositiveBigIntegerField(default=0)
    cost = models.PositiveBigIntegerField(default=0)  # nano-units
    durations = models.JSONField(default=list)  # requests by wire.feed.LATENCY_BOUNDS_MS, the rest in one more
    ttfts = models.JSONField(default=list)

    class Meta:
        ordering = ["-hour"]
        indexes = [models.Index(fields=["project", "hour"], name="usage_of_a_project")]
        constraints = [
            models.UniqueConstraint(fields=["hour", "key", "model", "status"], name="one_row_an_hour_key_model_status")
        ]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H}h {self.key_id} {self.model}"


class QuotaWarning(models.Model):
    """A limit of a period was used up to a share: told once."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="quota_warnings")
    subject = models.CharField(max_length=160)  # `project`, `key <id>` or `model <name>`
    limit = models.CharField(max_length=40)  # field of Limits
    period = models.DateField()  # first day of the UTC day or month
    percent = models.PositiveSmallIntegerField()
    used = models.PositiveBigIntegerField()
    allowed = models.PositiveBigIntegerField()
    at = models.DateTimeField()

    class Meta:
        ordering = ["-at", "-percent"]
        constraints = [
            models.UniqueConstraint(
                fields=["project", "subject", "limit", "period", "percent"], name="one_warning_a_period"
            )
        ]

    def __str__(self) -> str:
        return f"{self.subject}: {self.percent} % of {self.limit}"

    @property
    def limit_text(self) -> str:
        return self.limit.replace("_", " ")

    @property
    def used_text(self) -> str:
        return self.shown(self.used)

    @property
    def allowed_text(self) -> str:
        return self.shown(self.allowed)

    def shown(self, amount: int) -> str:
        """`used` or `allowed` in words of the limit: tokens, or money."""
        return f"{from_nano(amount):f}" if self.limit == "cost_per_month" else str(amount)
