"""Verbs of management keys: a person's own credentials for the REST API, for scripts and for continuous integration.

A key may do what its person may, or only read that. Nobody makes one for somebody else but a superuser, and no key
makes keys: one that leaks does not outlive its revocation.
"""

from __future__ import annotations

import datetime as dt
import hmac
import re
import secrets
import string
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import structlog
from django.contrib.auth.models import AbstractBaseUser
from django.db.models import QuerySet

from apikeys.checks import checked_expiry, checked_name, checked_networks
from apikeys.errors import NotForOthers
from apikeys.models import ManagementKey
from apikeys.services import hash_key

log = structlog.get_logger(__name__)

PREFIX = "stk-mgmt-"
_TEXT = re.compile(rf"{PREFIX}([a-z0-9]{{8}})-[A-Za-z0-9]{{43}}")
_USED_EVERY = dt.timedelta(minutes=10)
"""`last_used_at` is no closer than that: a request that reads should not write."""
_NO_HASH = "0" * 64


def create_management_key(
    user: AbstractBaseUser,
    *,
    name: str,
    read_only: bool = True,
    expires_at: dt.datetime | None = None,
    allowed_networks: Sequence[str] | None = None,
    by: Any,
    now: dt.datetime,
) -> tuple[ManagementKey, str]:
    """A key that acts as `user`, and its whole text, which exists nowhere else from then on.

    `by` is the person who asks; None: the machine's own administrator. Raises NotForOthers, InvalidName,
    InvalidExpiry, InvalidNetworks.
    """
    if by is not None and by.pk != user.pk and not by.is_superuser:
        raise NotForOthers("A management key acts as the person it belongs to: you can make your own only.")
    key = ManagementKey(
        id=_random(string.ascii_lowercase + string.digits, 8),
        user=user,
        name=checked_name(name),
        read_only=read_only,
        expires_at=checked_expiry(expires_at, now),
        allowed_networks=checked_networks(allowed_networks),
        created_by="" if by is None else by.get_username(),
    )
    text = f"{PREFIX}{key.id}-{_random(string.ascii_letters + string.digits, 43)}"
    key.secret_hash = hash_key(text)
    key.save(force_insert=True)
    log.info("management_key.created", key=key.id, user=user.get_username(), read_only=read_only)
    return key, text


def revoke_management_key(key: ManagementKey, now: dt.datetime, *, actor: str = "") -> ManagementKey:
    """Refuse a key from now on, for good. A second call changes nothing."""
    if key.revoked_at is None:
        key.revoked_at = now
        key.save(update_fields=["revoked_at"])
        log.info("management_key.revoked", key=key.id, actor=actor)
    return key


def visible_management_keys(user: Any) -> QuerySet[ManagementKey]:
    """One's own; all for those who may change people."""
    rows = ManagementKey.objects.select_related("user")
    return rows if user.is_staff and user.has_perm("auth.change_user") else rows.filter(user=user)


def find_management_key(text: str, address: str, now: dt.datetime) -> ManagementKey | None:
    """The key of this text, when it is good now and from this IP address; None for anything else."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    key = ManagementKey.objects.select_related("user").filter(pk=match[1]).first()
    is_it = hmac.compare_digest(hash_key(text), _NO_HASH if key is None else key.secret_hash)
    if key is None or not is_it or key.revoked_at is not None or not key.user.is_active:
        return None
    if key.expires_at is not None and key.expires_at <= now:
        return None
    if key.allowed_networks and not _is_within(address, key.allowed_networks):
        return None
    if key.last_used_at is None or now - key.last_used_at > _USED_EVERY:
        ManagementKey.objects.filter(pk=key.pk).update(last_used_at=now)
    return key


def _is_within(address: str, networks: Sequence[str]) -> bool:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if found.version == 6 and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in ip_network(network) for network in networks)


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
