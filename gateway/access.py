"""Who asks, and what they may: keys, models, and refusals by quota. Pure: values in, values or GatewayError out."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from gateway.errors import GatewayError
from gateway.http.request import Request
from gateway.quotas.subjects import SETTLING_S, LimitKind, Refusal, Subject
from gateway.state import KeyEntry, Network, ProjectEntry, State
from wire.feed import FeedRoute

_KEY = re.compile(rb"sk-stk-([a-z0-9]{8})-[A-Za-z0-9]{43}")
_DUMMY_DIGEST = bytes(32)


class Caller(NamedTuple):
    """Who asks."""

    key: KeyEntry
    project: ProjectEntry

    def subjects(self, model: str) -> tuple[Subject, ...]:
        """Whose quotas a request for this model counts on; empty without any."""
        found = (self.key.subject, self.project.subject, self.project.models.get(model))
        return tuple(subject for subject in found if subject is not None)


def credentials(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The Authorization header; or Anthropic's `x-api-key`, as one."""
    given = headers.get(b"authorization")
    if given is None and (key := headers.get(b"x-api-key")) is not None:
        return b"Bearer " + key
    return given


def authenticate(
    state: State, authorization: bytes | None, now: float, *, address: str = "", group: str = ""
) -> Caller:
    """The caller of a request. `now` is Unix time; `address` the client's IP address, `group` what it asks for (of
    `wire.feed.ENDPOINT_GROUPS`; empty for the list of models).

    Until the whole secret has been checked, nothing is told about a key: an unknown id and a wrong secret get the same
    words after the same work.

    Raises:
        GatewayError: 401 missing, malformed, incorrect, revoked, expired; 403 not from there, not for that, project
            switched off.
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
    if entry is not None and entry.previous_digest and entry.key.previous_until > now:  # the overlap of a rotation
        known |= hmac.compare_digest(digest, entry.previous_digest)
    if entry is None or not known:
        raise _unauthorized(f"Incorrect API key provided: sk-stk-{key_id}-***.")
    if not entry.key.active:
        raise _unauthorized(f"The API key sk-stk-{key_id}-*** has been revoked.")
    if entry.key.expires_at is not None and entry.key.expires_at <= now:
        raise _unauthorized(f"The API key sk-stk-{key_id}-*** has expired.")
    project = state.projects.get(entry.key.project_id)
    if project is None or not project.project.active:
        raise GatewayError(403, "project_inactive", "The project of this API key is switched off.")
    if entry.endpoints is not None and group and group not in entry.endpoints:
        raise GatewayError(403, "endpoint_not_allowed", f"This API key may not be used for {group}.")
    if entry.networks and not _is_within(address, entry.networks):
        raise GatewayError(403, "network_not_allowed", "This API key may not be used from this network.")
    return Caller(entry, project)


def client_address(request: Request, proxies: Sequence[Network]) -> str:
    """IP address of the client: of the connection, or what the last proxy of ours saw (`X-Forwarded-For`, read from
    its end: what stands before the first address that is no proxy could be anybody's words)."""
    address = request.peer
    if not proxies:
        return address
    forwarded = request.headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")
    while forwarded and _is_within(address, proxies):
        if not (nearer := forwarded.pop().strip()):
            break
        address = nearer
    return address


def _is_within(address: str, networks: Sequence[Network]) -> bool:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if found.version == 6 and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in network for network in networks if network.version == found.version)


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


_BY_CALENDAR = (LimitKind.TOKENS_PER_DAY, LimitKind.TOKENS_PER_MONTH, LimitKind.COST_PER_MONTH)


def _money(nano_units: int) -> str:
    return f"{nano_units / 10**9:.4f}"


def refused(refusal: Refusal) -> GatewayError:
    """The 429 for a refusal by quota, in OpenAI's words where they fit."""
    where = "of this project for this model" if refusal.owner == "model" else f"of this {refusal.owner}"
    if refusal.kind is LimitKind.TOKENS_PER_REQUEST:
        return GatewayError(
            400,
            "max_tokens_per_request",
            f"The request may use {refusal.requested} tokens, the limit {where} is {refusal.limit}: "
            "shorten the prompt, or lower max_tokens.",
            param="max_tokens",
        )
    used = f"Limit {refusal.limit}, used {refusal.used}, requested {refusal.requested}."
    if refusal.kind is LimitKind.COST_PER_MONTH:
        used = f"Limit {_money(refusal.limit)}, used {_money(refusal.used)}, requested {_money(refusal.requested)}."
    if refusal.retry_after_s is None:
        return GatewayError(
            429, "rate_limit_exceeded", f"Request too large for the {refusal.kind} {where}. {used}", type_="tokens"
        )
    by_calendar = refusal.kind in _BY_CALENDAR
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
