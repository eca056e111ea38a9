"""Which rows are audited, and which of their fields never enter the audit log."""

from __future__ import annotations

from auditlog.registry import auditlog
from django.contrib.auth.models import Group, User

from apikeys.models import ApiKey, ManagementKey, Membership, ModelQuota, Project
from deployments.models import Deployment, ModelPrice, Provider, Revision, Route, RouteTarget
from fleet.models import Gateway, JoinToken, Server
from models_registry.location_models import StorageJob, StorageLocation, VersionCopy
from models_registry.models import HubToken, Model

_DECIDED = ["name", "kind", "path", "server_path", "quota_bytes", "read_only", "is_default"]
_NODE = ["public_key_pem", "certificate_pem"]


def register_all() -> None:
    """What people and keys decide; not what is observed (states, usage, samples)."""
    auditlog.register(Server, exclude_fields=_NODE)
    auditlog.register(Gateway, exclude_fields=_NODE)
    auditlog.register(JoinToken, exclude_fields=["secret_hash"])
    auditlog.register(Model)
    auditlog.register(HubToken, exclude_fields=["sealed_token"])
    auditlog.register(StorageLocation, include_fields=_DECIDED)
    auditlog.register(StorageJob, include_fields=["kind", "version", "location", "source"])
    auditlog.register(VersionCopy, include_fields=["version", "location", "in_place"])
    auditlog.register(Deployment, exclude_fields=["explanation", "refusals", "updated_at"])
    auditlog.register(Revision)
    auditlog.register(Project, exclude_fields=["updated_at"])
    auditlog.register(Membership)
    auditlog.register(ApiKey, exclude_fields=["secret_hash", "previous_hash", "updated_at", "last_used_at"])
    auditlog.register(ManagementKey, exclude_fields=["secret_hash", "last_used_at"])
    auditlog.register(ModelQuota, exclude_fields=["updated_at"])
    auditlog.register(Provider, exclude_fields=["sealed_key", "updated_at"])
    auditlog.register(Route, exclude_fields=["updated_at"])
    auditlog.register(RouteTarget)
    auditlog.register(ModelPrice, exclude_fields=["updated_at"])
    auditlog.register(User, exclude_fields=["password", "last_login"], m2m_fields={"groups", "user_permissions"})
    auditlog.register(Group, m2m_fields={"permissions"})
