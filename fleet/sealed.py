"""Secrets of others that must be read again (keys of providers, tokens): encrypted in the database.

Fernet (AES-128-CBC with HMAC-SHA256): `settings.FIELD_KEYS`, the first of which seals and any of which opens.
"""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings

from wire.errors import Problem


class Unreadable(Problem):
    """It was sealed by a key that this installation does not have."""

    code = "secret_unreadable"
    status = 409
    remedy = "Put the earlier key behind the new one in STOKEHOLD_FIELD_KEYS, or enter the secret again."


def seal(text: str) -> str:
    """What may be stored; empty for an empty text."""
    return _keys().encrypt(text.encode()).decode() if text else ""


def unseal(sealed: str) -> str:
    """The text. Raises Unreadable."""
    if not sealed:
        return ""
    try:
        return _keys().decrypt(sealed.encode()).decode()
    except InvalidToken as error:
        raise Unreadable("a stored secret cannot be opened with the keys of this installation") from error


def reseal(sealed: str) -> str:
    """The same under the first key. Raises Unreadable."""
    try:
        return _keys().rotate(sealed.encode()).decode() if sealed else ""
    except InvalidToken as error:
        raise Unreadable("a stored secret cannot be opened with the keys of this installation") from error


def _keys() -> MultiFernet:
    return MultiFernet([Fernet(key) for key in settings.FIELD_KEYS])
