"""Errors of this package; the REST API turns them into problem documents."""

from __future__ import annotations

from wire.errors import Problem


class FleetError(Problem):
    """Something asked of the fleet that is not done. `status` is the HTTP status it becomes."""

    code = "fleet_error"
    status = 400
    remedy = ""


class BadJoinToken(FleetError):
    """Unknown, expired, used, for another role, or of another master. `code` says which."""

    code = "join_token_unknown"
    status = 403
    remedy = "Make a new join token in the admin under Servers, or with `./stokehold join_token`."


class BadJoinRequest(FleetError):
    """A name, key or address that cannot be certified."""

    code = "join_request_invalid"
    status = 400
    remedy = "Correct what the message names and join again; the join token was not used up."


class NameTaken(FleetError):
    code = "name_taken"
    status = 409


class Revoked(FleetError):
    """The node was revoked: it may not come back without joining anew."""

    code = "revoked"
    status = 403
    remedy = "Join it again with a new join token: `./stokehold join_token`."


class AgentUnreachable(FleetError):
    """The agent has no link, or gave no answer in time."""

    code = "agent_unreachable"
    status = 504
    remedy = "Look at the server's status; it answers again as soon as its agent is connected."
