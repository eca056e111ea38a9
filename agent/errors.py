"""Errors of the agent: a stable `code`, a message for a person, and a remedy."""

from __future__ import annotations

from wire.errors import Problem


class AgentError(Problem):
    """Something the agent could not do."""

    code = "agent_error"
    remedy = "Look at the agent's log."


class JoinFailed(AgentError):
    """`retry`: the master could not be reached, so the same token may still work later."""

    code = "join_failed"
    remedy = "Check the master's address and the join token."

    def __init__(self, message: str, *, remedy: str | None = None, retry: bool = False) -> None:
        super().__init__(message, remedy=remedy)
        self.retry = retry


class HomeBusy(AgentError):
    code = "home_busy"
    remedy = "Stop the other agent first, or give this one a home folder of its own."


class BadHome(AgentError):
    code = "bad_home"
    remedy = "Join the server again with `python -m agent join`."


class CannotRun(AgentError):
    """This server cannot run that spec. `recheck`: worth another look now and then (a program or image may appear)."""

    code = "cannot_run"
    remedy = "Place the deployment elsewhere, or add what is missing on this server."

    def __init__(self, message: str, *, remedy: str | None = None, recheck: bool = False) -> None:
        super().__init__(message, remedy=remedy)
        self.recheck = recheck


class NotPrepared(AgentError):
    """The model's files are not on this server (any more)."""

    code = "not_prepared"
    remedy = "Nothing to do: they are fetched again."


class StartFailed(AgentError):
    """The runtime could not start the engine; counted like a crash."""

    code = "start_failed"
    remedy = "Read the message of the runtime."


class RuntimeUnavailable(AgentError):
    """The runtime (a Docker daemon) does not answer now; what it runs is unknown, not gone."""

    code = "runtime_unavailable"
    remedy = "Start the Docker daemon of this server."


class FetchFailed(AgentError):
    """Files could not be brought here now; tried again."""

    code = "fetch_failed"
    remedy = "Check that the master can be reached, and that its store holds the file."


class CorruptBlob(FetchFailed):
    code = "corrupt_blob"
    remedy = "Import the model again on the master: its copy of the file does not fit its sha256."


class DiskFull(FetchFailed):
    code = "disk_full"
    remedy = "Free space on the file system of the agent's home, or set a disk quota for it."
