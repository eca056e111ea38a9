"""Errors of keys and projects: each has a stable `code`, an HTTP `status`, a message for a person, and a remedy."""

from __future__ import annotations

from wire.errors import Problem
from wire.feed import ENDPOINT_GROUPS


class KeysError(Problem):
    """A request about projects, keys or usage that cannot be done."""

    code = "keys_error"
    status = 400
    remedy = "Correct the request and send it again."


class InvalidLimits(KeysError):
    code = "invalid_limits"
    remedy = "Give whole numbers of at least 1, or leave a limit empty for none."


class InvalidName(KeysError):
    code = "invalid_name"
    remedy = "Give a name of 1 to 80 characters that is not taken."


class NameTaken(InvalidName):
    code = "name_taken"
    status = 409


class InvalidModels(KeysError):
    code = "invalid_models"
    remedy = "Give public model names, each at most 120 characters, or none at all to allow every model."


class InvalidEndpoints(KeysError):
    code = "invalid_endpoints"
    remedy = f"Give any of {', '.join(ENDPOINT_GROUPS)}, or none at all to allow every endpoint."


class InvalidNetworks(KeysError):
    code = "invalid_networks"
    remedy = "Give networks like 10.1.0.0/16 or addresses like 192.0.2.7, or none at all to allow any."


class InvalidRequestLog(KeysError):
    code = "invalid_request_log"
    remedy = "Give days from 1 to 365, and patterns of RE2 (no look-around, no back-references) that match some text."


class InvalidGuard(KeysError):
    code = "invalid_guard"
    remedy = "Give an address like https://guard.example.org/check, or none, and a time of at most 60000 ms."


class InvalidExpiry(KeysError):
    code = "invalid_expiry"
    remedy = "Give a moment in the future, or none for a key that does not expire."


class KeyRevoked(KeysError):
    code = "key_revoked"
    status = 409
    remedy = "Make a new key: a revoked one stays revoked."


class NotForOthers(KeysError):
    code = "not_for_others"
    status = 403
    remedy = "Sign in as that person, or ask a superuser."


class MadeByKey(KeysError):
    code = "key_makes_no_keys"
    status = 403
    remedy = "Make it in the admin, with a token of POST /api/v1/auth/token, or with `create_management_key`."


class ProjectInUse(KeysError):
    code = "project_in_use"
    status = 409
    remedy = "Switch the project off instead: its keys stop at once and its usage stays on record."


class ProjectGone(KeysError):
    code = "project_gone"
    status = 409
    remedy = "It was deleted meanwhile: choose another project."


class ProjectOff(KeysError):
    code = "project_off"
    status = 409
    remedy = "Switch the project on first."


class InvalidPeriod(KeysError):
    code = "invalid_period"
    remedy = "Give `since` before `until`, and groups out of hour, day, project, key and model."
