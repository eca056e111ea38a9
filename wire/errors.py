"""Errors of the wire package: each has a stable `code`, a message for a person, and a remedy."""

from __future__ import annotations


class WireError(Exception):
    """A message, signature or certificate that must not be acted on."""

    code = "wire_error"
    remedy = "Look at the log of the peer that sent it."

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if remedy is not None:
            self.remedy = remedy


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
    remedy = "Make a new join token in the admin under Servers, or with `./stokehold join_token`."


class BadMessage(WireError):
    code = "bad_message"
    remedy = "Update the older of the two peers: they speak different protocol versions."
