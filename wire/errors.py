"""The base of every package's errors, and those of this one."""

from __future__ import annotations

from typing import Any


class Problem(Exception):
    """Something that was asked and is not done: a stable `code`, a message for a person, and a remedy.

    `status` is the HTTP status that the REST API gives it; `details` go into its problem document (RFC 9457).
    """

    code = "error"
    status = 400
    remedy = ""

    def __init__(self, message: str, *, remedy: str | None = None, code: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        if remedy is not None:
            self.remedy = remedy
        if code is not None:
            self.code = code


class WireError(Problem):
    """A message, signature or certificate that must not be acted on."""

    code = "wire_error"
    remedy = "Look at the log of the peer that sent it."


class BadSignature(WireError):
    code = "bad_signature"
    remedy = "Join the server again: it does not hold the signing key of this master."


class WrongServer(WireError):
    code = "wrong_server"
    remedy = "The state was made for another server; check that two agents do not share one home folder."


class StaleGeneration(WireError):
    code = "stale_generation"
    remedy = "Nothing to do: a newer desired state is already in force."


class Expired(WireError):
    code = "expired"
    remedy = "Compare the clocks of both machines (NTP), then try again."


class BadToken(WireError):
    code = "bad_token"
    status = 401
    remedy = "Make a new join token in the admin under Servers, or with `./stokehold join_token`."


class BadMessage(WireError):
    code = "bad_message"
    remedy = "Update the older of the two peers: they speak different protocol versions."
