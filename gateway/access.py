"""Who asks, and what they may: keys, models, and refusals by quota. Pure: values in, values or GatewayError out."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.errors import GatewayError
from gateway.quota import SETTLING_S, LimitKind, Refusal
from gateway.state import KeyEntry, ProjectEntry, State
from wire.feed import FeedRoute

_KEY = re.compile(rb"sk-stk-([a-z0-9]{8})-[A-Za-z0-9]{43}")
_DUMMY_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class Caller:
    key: KeyEntry
    project: ProjectEntry


def credentials(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The Authorization header; or Anthropic's `x-api-key`, as one."""
    given = headers.get(b"authorization")
    if given is None and (key := headers.get(b"x-api-key")) is not None:
        return b"Bearer " + key
    return given


def authenticate(state: State, authorization: bytes | None, now: float) -> Caller:
    """The caller of a request. `now` is Unix time.

    Until the whole secret has been checked, nothing is told about a key: an unknown id and a wrong secret get the same
    words after the same work.

    Raises:
        GatewayError: 401 missing, malformed, incorrect, revoked, expired; 403 project switched off.
    """
    if not authorization:
        raise _unauthorized("You didn't provide an API key. Send it as 'Authorization: Bearer sk-stk-...'.")
    scheme, _, text = authorization.partition(b" ")
    text = text.strip()
    match = _KEY.fullmatch(text)
    if scheme.lower() != b"bearer" or match is None:
        raise _unauthorized("This is not an API key of this service: it should look like 'Bearer sk-stk-...'.")
    key_id = match[1].decode()
    entry = state.keys.get(key_id)
    digest = hmac.digest(state.pepper, text, hashlib.sha256)
    known = hmac.compare_digest(digest, _DUMMY_DIGEST if entry is None else entry.digest)
    if entry is None or not known:
        raise _unauthorized(f"Incorrect API key provided: sk-stk-{key_id}-***.")
    if not entry.key.active:
        raise _unauthorized(f"The API key sk-stk-{key_id}-*** has been revoked.")
    if entry.key.expires_at is not None and entry.key.expires_at <= now:
        raise _unauthorized(f"The API key sk-stk-{key_id}-*** has expired.")
    project = state.projects.get(entry.key.project_id)
    if project is None or not project.project.active:
        raise GatewayError(403, "project_inactive", "The project of this API key is switched off.")
    return Caller(entry, project)


def find_route(state: State, caller: Caller, model: str) -> FeedRoute:
    """Raises GatewayError 404 for an unknown model, 403 for one that this key may not use."""
    route = state.routes.get(model)
    allowed = caller.key.models
    if allowed is not None and model not in allowed:
        raise GatewayError(
            403, "model_not_allowed", f"This API key may not use the model '{model[:200]}'.", param="model"
        )
    if route is None or not route.listed:
        raise GatewayError(
            404, "model_not_found", f"The model '{model[:200]}' does not exist or is not served here.", param="model"
        )
    return route


def visible_routes(state: State, caller: Caller) -> list[FeedRoute]:
    """Models that a key may use, by name."""
    allowed = caller.key.models
    return [
        route for name, route in sorted(state.routes.items()) if route.listed and (allowed is None or name in allowed)
    ]


def is_limited(caller: Caller) -> bool:
    """Whether any token limit makes an estimate worth its cost."""
    for limits in (caller.key.key.limits, caller.project.project.limits):
        if (
            limits.tokens_per_minute is not None
            or limits.tokens_per_day is not None
            or limits.tokens_per_month is not None
        ):
            return True
    return False


def refused(refusal: Refusal) -> GatewayError:
    """The 429 for a refusal by quota, in OpenAI's words where they fit."""
    where = f"of this {refusal.owner}"
    used = f"Limit {refusal.limit}, used {refusal.used}, requested {refusal.requested}."
    if refusal.retry_after_s is None:
        return GatewayError(
            429, "rate_limit_exceeded", f"Request too large for the {refusal.kind} {where}. {used}", type_="tokens"
        )
    by_calendar = refusal.kind in (LimitKind.TOKENS_PER_DAY, LimitKind.TOKENS_PER_MONTH)
    if by_calendar and refusal.retry_after_s > SETTLING_S:
        return GatewayError(
            429,
            "insufficient_quota",
            f"The quota {where} is used up ({refusal.kind}). {used}",
            type_="insufficient_quota",
            retry_after_s=refusal.retry_after_s,
        )
    type_ = "tokens" if by_calendar or refusal.kind is LimitKind.TOKENS_PER_MINUTE else "requests"
    return GatewayError(
        429,
        "rate_limit_exceeded",
        f"Rate limit reached for {refusal.kind} {where}. {used}",
        type_=type_,
        retry_after_s=refusal.retry_after_s,
    )


def _unauthorized(message: str) -> GatewayError:
    return GatewayError(401, "invalid_api_key", message, headers=((b"www-authenticate", b"Bearer"),))
