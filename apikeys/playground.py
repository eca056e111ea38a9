"""The key behind a person's playground: one a project, good for an hour, its text never kept and never shown.

The text is derived from the installation's secret key, the key's id and its expiry, so every process of the master
knows it and no table holds it. A key that somebody rotated or changed no longer matches, and is given a new text.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from apikeys import access, services
from apikeys.errors import ProjectOff
from apikeys.models import ApiKey, Membership, Project
from apikeys.signals import keys_changed

LIFETIME = dt.timedelta(hours=1)
RENEW_BEFORE_END = dt.timedelta(minutes=10)
_MARK = "playground of "  # no user name has a space, so no key made by hand has it
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_LENGTH = 43


def projects_to_try(user: Any) -> QuerySet[Project]:
    """Active projects on whose account a person may use the playground: those they belong to, in any role, and those
    in which they may make keys anyway. A member so spends the project's quota by hand, under their own name."""
    mine = Membership.objects.filter(user=user).values("project")
    may_make_keys = access.projects_to_make_keys_in(user).values("pk")
    return Project.objects.filter(Q(pk__in=mine) | Q(pk__in=may_make_keys), active=True).order_by("name")


def playground_key(user: Any, project: Project, now: dt.datetime) -> str:
    """Text of the key of this person's playground in this project; made or renewed when there is none that lasts.

    The caller has checked `projects_to_try`. Gateways know a new text within a second. Raises ProjectOff.
    """
    marker = f"{_MARK}{user.get_username()}"
    with transaction.atomic():
        project = Project.objects.select_for_update().get(pk=project.pk)  # two requests at once make one key
        if not project.active:
            raise ProjectOff(f"Project {project.name!r} is switched off.")
        rows = ApiKey.objects.select_for_update().filter(project=project, created_by=marker, revoked_at__isnull=True)
        key = rows.order_by("created_at", "pk").first()
        if key is None:
            name = marker if len(marker) <= 80 else "playground"
            key, _ = services.create_key(
                project=project,
                name=name,
                allowed_endpoints=("chat",),
                actor=marker,
                expires_at=now + LIFETIME,
                now=now,
            )
        text = _text(key)
        if key.expires_at is None or key.expires_at - now < RENEW_BEFORE_END or not _opens(text, key):
            text = _renew(key, now)
    return text


def is_playground_key(key: ApiKey) -> bool:
    """Whether it was made here: nobody ever sees its text."""
    return key.created_by.startswith(_MARK)


def _renew(key: ApiKey, now: dt.datetime) -> str:
    key.expires_at = (now + LIFETIME).replace(microsecond=0)
    text = _text(key)
    key.secret_hash = services.hash_key(text)
    key.save(update_fields=["expires_at", "secret_hash", "updated_at"])
    transaction.on_commit(lambda: keys_changed.send(sender=None))
    return text


def _opens(text: str, key: ApiKey) -> bool:
    return hmac.compare_digest(services.hash_key(text), key.secret_hash)


def _text(key: ApiKey) -> str:
    """`sk-stk-<id>-<secret>`, the same in every process for the same id and expiry."""
    until = int(key.expires_at.timestamp()) if key.expires_at else 0
    purpose = f"stokehold playground {key.pk} {until}".encode()
    number = int.from_bytes(hmac.new(settings.SECRET_KEY.encode(), purpose, hashlib.sha256).digest(), "big")
    letters = []
    for _ in range(_SECRET_LENGTH):  # 62^43 > 2^256: all of the digest goes in
        number, rest = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[rest])
    return f"{key.prefix}-{''.join(letters)}"
