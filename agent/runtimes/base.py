"""What every runtime does, and the pieces they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.reconcile import Unit
from wire.engine import EngineSpec, RuntimeKind
from wire.messages import InstanceSpec, RuntimeInfo

Progress = Callable[[float], None]
"""Told 0..1 now and then."""


@dataclass(frozen=True)
class Ended:
    """How a unit ended, read before it was removed."""

    exit_code: int | None  # None: nobody saw it end (a process adopted by this agent)
    lines: tuple[str, ...]
    command: tuple[str, ...]
    ran_s: float


class Runtime(Protocol):
    """Runs units. Every call may raise RuntimeUnavailable; none blocks the event loop."""

    kind: RuntimeKind

    async def info(self) -> RuntimeInfo | None:
        """What it offers; None: it does not work on this server now."""

    async def missing(self, engine: EngineSpec) -> str:
        """Why `engine` cannot be run by this runtime here; empty: it can. Looks at a registry where need be."""

    async def prepare(self, engine: EngineSpec, progress: Progress) -> None:
        """Bring what the engine needs here (its image). Raises CannotRun, FetchFailed."""

    async def units(self) -> list[Unit]:
        """All units of this home, the dead ones too."""

    async def start(self, spec: InstanceSpec, model_dir: Path, port: int) -> Unit:
        """Start one unit, on `port` of loopback if free and if the runtime has a say. Leaves nothing on failure.

        Raises:
            CannotRun: the program or image is missing, or a device is.
            StartFailed: the runtime refused.
        """

    async def stop(self, unit: Unit, grace_s: float) -> Ended | None:
        """SIGTERM, `grace_s`, SIGKILL; then as `collect`."""

    async def collect(self, unit: Unit) -> Ended | None:
        """Read a dead unit's end and remove it. None: it is gone already, or it never ran."""

    async def tail(self, instance_id: str, lines: int) -> tuple[str, ...]:
        """Last lines of the instance's output, oldest first; empty when there is none."""

    async def memory_bytes(self, unit: Unit) -> int:
        """Resident memory of its processes; 0: not known."""

    async def close(self) -> None:
        """Let go of connections; units run on."""


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with `{host}`, `{port}` and `{model_dir}` filled in; other braces (JSON, templates) stay as they are."""
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def resolve(engine: EngineSpec, *, host: str, port: int, model_dir: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """(arguments, environment) of the engine on this server."""
    values = {"host": host, "port": str(port), "model_dir": model_dir}
    argv = tuple(fill(argument, values) for argument in engine.argv)
    return argv, {name: fill(value, values) for name, value in engine.env.items()}


def last_lines(data: bytes, count: int) -> tuple[str, ...]:
    """The last `count` lines of an output, made printable; overlong ones are cut."""
    text = data.decode("utf-8", "replace").replace("\x00", "")
    return tuple(line.rstrip("\r")[:2000] for line in text.splitlines()[-count:]) if count > 0 else ()
