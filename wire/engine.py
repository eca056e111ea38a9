"""How an engine is to be run, in words that any runtime understands. The agent knows no engine, only this."""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec


class RuntimeKind(StrEnum):
    """What runs an engine on a server. AUTO: docker where the image is present or can be pulled, else process."""

    AUTO = "auto"
    DOCKER = "docker"
    PROCESS = "process"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """HTTP check that decides that an engine can take requests: `GET path` answers `status`."""

    path: str = "/health"
    status: int = 200
    interval_s: float = 0.25
    start_timeout_s: float = 600.0
    """An engine that is not ready this long after its start is stopped and counted as a failed start."""


class FailureHint(msgspec.Struct, frozen=True, kw_only=True):
    """A pattern in an engine's log that tells the likely cause of its death."""

    pattern: str
    """Python regular expression, searched in the last lines (case-insensitive)."""
    cause: str
    remedy: str


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One engine process, fully resolved but for what only the server knows.

    `argv` and `env` values may hold these placeholders, filled in by the runtime: `{host}` (address to listen on),
    `{port}` (port to listen on) and `{model_dir}` (folder with the model version's files).
    """

    engine: str
    """Adapter's name, e.g. `llamacpp`; for people and labels only."""
    image: str
    """Image for the docker runtime; its entry point is the engine, `argv` follows it."""
    program: str
    """Program for the process runtime, found through the agent's configuration or on PATH."""
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    container_port: int = 8080
    """`{port}` inside a container."""
    shm_bytes: int = 0
    memory_bytes: int = 0
    """What was reserved for it (host memory when no GPU is used)."""
    memory_limit_bytes: int = 0
    """Hard limit for the container; 0: none."""
    gpu_indexes: tuple[int, ...] = ()
    readiness: Readiness = Readiness()
    metrics_path: str | None = "/metrics"
    stop_grace_s: float = 20.0
    """Between SIGTERM and SIGKILL."""
    failure_hints: tuple[FailureHint, ...] = ()


def spec_hash(*parts: msgspec.Struct | str) -> str:
    """16 hex digits that change whenever what should run changes; put on every container and process as a label."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else msgspec.json.encode(part, order="sorted"))
        digest.update(b"\0")
    return digest.hexdigest()[:16]
