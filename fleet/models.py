"""Nodes of the fleet: servers with an agent, gateways, and the tokens they join with.

What people decide (`Server`), what the controller wants there (`ServerDesired`) and what was observed (`ServerState`)
are separate rows, so that a heartbeat never overwrites a decision.
"""

from __future__ import annotations

import secrets
import string

from django.conf import settings
from django.db import models

_ALPHABET = string.ascii_lowercase + string.digits


def make_id(prefix: str) -> str:
    """Random id such as `srv-4k2m9x0q7d`: safe as a DNS label, a file name and in a URL."""
    return f"{prefix}-{''.join(secrets.choice(_ALPHABET) for _ in range(10))}"


def make_server_id() -> str:
    return make_id("srv")


def make_gateway_id() -> str:
    return make_id("gw")


class Role(models.TextChoices):
    AGENT = "agent", "agent"
    GATEWAY = "gateway", "gateway"


class JoinToken(models.Model):
    """Single-use, short-lived permission to join. Only a hash of the secret is kept."""

    token_id = models.CharField(max_length=8, unique=True)
    secret_hash = models.CharField(max_length=64)  # hex sha256; the secret has 256 random bits
    role = models.CharField(max_length=8, choices=Role, default=Role.AGENT)
    note = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)
    used_by = models.CharField(max_length=32, blank=True, help_text="Id of the server or gateway that joined with it.")

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.token_id


class Node(models.Model):
    """What servers and gateways have in common: an identity."""

    name = models.CharField(max_length=63, unique=True)
    public_key_pem = models.TextField(editable=False)
    certificate_pem = models.TextField(editable=False, blank=True)
    certificate_expires_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True, blank=True, help_text="Set: its link is cut and it may not come back.")

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.name


class Availability(models.TextChoices):
    ACTIVE = "active", "active"
    CORDONED = "cordoned", "cordoned (nothing new)"
    DRAINING = "draining", "draining (moves away what it has)"


class Server(Node):
    """A machine with an agent."""

    id = models.CharField(primary_key=True, max_length=32, default=make_server_id, editable=False)
    availability = models.CharField(max_length=10, choices=Availability, default=Availability.ACTIVE)
    labels = models.JSONField(default=dict, blank=True, help_text='For placement, e.g. {"rack": "b2"}.')
    cache_quota_bytes = models.BigIntegerField(null=True, blank=True, help_text="Of model files. Empty: the disk.")
    keep_versions = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="Of each model, at most so many versions that nothing uses. Empty: all."
    )
    download_bytes_per_second = models.BigIntegerField(null=True, blank=True, help_text="Of model files. Empty: any.")
    upload_bytes_per_second = models.BigIntegerField(
        null=True, blank=True, help_text="Of model files, to other servers. Empty: any."
    )

    class Meta:
        ordering = ["name"]


class ServerState(models.Model):
    """What was last observed of a server. Written by the link (batched) and, for `lost_at`, by the controller."""

    server = models.OneToOneField(Server, primary_key=True, on_delete=models.CASCADE, related_name="state")
    connected_since = models.DateTimeField(null=True)
    last_seen_at = models.DateTimeField(null=True, db_index=True)
    lost_at = models.DateTimeField(null=True)  # lease ran out; None again when it is back
    release = models.CharField(max_length=32, blank=True)
    protocol = models.IntegerField(default=0)
    host_id = models.CharField(max_length=32, blank=True)
    facts = models.JSONField(null=True)  # wire.messages.Facts
    load = models.JSONField(null=True)  # wire.messages.Load
    load_at = models.DateTimeField(null=True)
    observed = models.JSONField(null=True)  # wire.messages.Observed
    observed_generation = models.BigIntegerField(default=0)
    rejected = models.TextField(blank=True)  # why the agent refused the newest desired state
    cache = models.JSONField(null=True)  # wire.messages.Cache; None: an agent that does not tell
    cache_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"state of {self.server_id}"


class ServerDesired(models.Model):
    """What should run on a server: a whole state, sent by the link.

    Its instances are the controller's; revoking a gateway adds to the certificates that it refuses.
    """

    server = models.OneToOneField(Server, primary_key=True, on_delete=models.CASCADE, related_name="desired")
    generation = models.BigIntegerField(default=0)
    payload = models.JSONField(default=dict)  # wire.messages.DesiredState
    updated_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"desired state of {self.server_id}"


class Gateway(Node):
    """A gateway process group that serves clients."""

    id = models.CharField(primary_key=True, max_length=32, default=make_gateway_id, editable=False)

    class Meta:
        ordering = ["name"]


class RevokedCertificate(models.Model):
    """A node's certificate that relays refuse until it expires; part of every server's desired state."""

    serial = models.CharField(primary_key=True, max_length=40)  # as wire.certs.serial
    node_id = models.CharField(max_length=32, db_column="gateway_id")
    revoked_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.serial


class GatewayState(models.Model):
    """What a gateway last said, about once a second."""

    gateway = models.OneToOneField(Gateway, primary_key=True, on_delete=models.CASCADE, related_name="state")
    connected_since = models.DateTimeField(null=True)
    last_seen_at = models.DateTimeField(null=True)
    release = models.CharField(max_length=32, blank=True)
    host_id = models.CharField(max_length=32, blank=True)
    base_url = models.CharField(max_length=200, blank=True)
    routable = models.JSONField(default=list)  # instance ids it may still send new requests to
    in_flight = models.JSONField(default=dict)  # instance id -> requests
    requests_per_minute = models.FloatField(default=0)
    tokens_per_minute = models.FloatField(default=0)

    def __str__(self) -> str:
        return f"state of {self.gateway_id}"
