"""Engines as containers of the local Docker daemon, found again by their labels.

Published on a random port of 127.0.0.1, with a read-only root, no capabilities and no way to new privileges, and the
model's folder mounted read-only. The daemon restarts nothing (`no` policy): the agent does, and says why.
The SDK blocks, so every call runs in a thread of this runtime's own: a daemon that hangs holds up nobody else.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import requests
import structlog
from docker.types import DeviceRequest, LogConfig
from docker.utils import parse_repository_tag

from agent.errors import CannotRun, RuntimeUnavailable, StartFailed
from agent.home import AgentHome
from agent.reconcile import Unit
from agent.records import KEPT_LINES
from agent.runtimes.base import Ended, Progress, last_lines, resolve
from agent.runtimes.process import resident_bytes
from wire.engine import EngineSpec, RuntimeKind
from wire.messages import InstanceSpec, RuntimeInfo

_LABEL_HOME, _LABEL_INSTANCE, _LABEL_HASH = "stokehold.home", "stokehold.instance", "stokehold.spec_hash"
_MODEL_DIR = "/models"
_CALL_TIMEOUT_S = 10
_REGISTRY_TIMEOUT_S = 8.0
_THREADS = 16
_DOWN = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
    ConnectionError,
)
_Result = TypeVar("_Result")

log = structlog.get_logger(__name__)


class DockerRuntime:
    """Runs containers. Created also where no daemon answers: it may come later."""

    kind = RuntimeKind.DOCKER

    def __init__(self, home: AgentHome) -> None:
        self._home = home
        self._client: Any = None
        self._connecting = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="docker")
        self._pulling = ThreadPoolExecutor(_THREADS, thread_name_prefix="docker-pull")
        self._pids: dict[str, int] = {}

    async def info(self) -> RuntimeInfo | None:
        def look(client: Any) -> RuntimeInfo:
            version = client.version()["Version"]
            tags = {tag for image in client.api.images() for tag in image.get("RepoTags") or ()}
            return RuntimeInfo(kind=self.kind, version=version, images=tuple(sorted(tags - {"<none>:<none>"})))

        try:
            return await self._ask(look)
        except RuntimeUnavailable:
            return None

    async def missing(self, engine: EngineSpec) -> str:
        if not engine.image:
            return "the engine names no image for the docker runtime"
        try:
            if await self._call(lambda client: _has_image(client, engine.image)):
                return ""
        except RuntimeUnavailable as error:
            return error.message
        try:
            looking = self._call(lambda client: client.api.inspect_distribution(engine.image))
            await asyncio.wait_for(looking, _REGISTRY_TIMEOUT_S)
        except (docker.errors.APIError, RuntimeUnavailable, TimeoutError) as error:
            return f"the image {engine.image!r} is not on this server and cannot be pulled: {_words(error)}"
        return ""

    async def prepare(self, engine: EngineSpec, progress: Progress) -> None:
        if not engine.image:
            raise CannotRun("the engine names no image for the docker runtime")
        if await self._call(lambda client: _has_image(client, engine.image)):
            return
        stop = threading.Event()
        try:
            await self._call(lambda client: _pull(client, engine.image, progress, stop), self._pulling)
        except docker.errors.APIError as error:
            raise CannotRun(
                f"the image {engine.image!r} is not on this server and cannot be pulled: {_words(error)}",
                remedy="Check the name of the image, and that this server reaches its registry.",
                recheck=True,
            ) from error
        finally:
            stop.set()

    async def units(self) -> list[Unit]:
        found = await self._ask(
            lambda client: client.api.containers(all=True, filters={"label": f"{_LABEL_HOME}={self._home.home_id}"})
        )
        units = []
        for row in found:
            labels = row.get("Labels") or {}
            if _LABEL_INSTANCE not in labels:
                continue
            ports = [port["PublicPort"] for port in row.get("Ports") or () if port.get("PublicPort")]
            units.append(
                Unit(
                    instance_id=labels[_LABEL_INSTANCE],
                    spec_hash=labels.get(_LABEL_HASH, ""),
                    runtime=self.kind,
                    unit_id=row["Id"][:12],
                    running=row["State"] in ("running", "paused", "restarting"),
                    port=ports[0] if ports else 0,
                )
            )
        return units

    async def start(self, spec: InstanceSpec, model_dir: Path, port: int) -> Unit:
        starting = asyncio.create_task(self._call(lambda client: self._start(client, spec, model_dir)))
        return await asyncio.shield(starting)  # a start is never left half done

    async def stop(self, unit: Unit, grace_s: float) -> Ended | None:
        await self._ask(lambda client: _kill(client, unit.unit_id, "SIGTERM"))
        deadline = time.monotonic() + grace_s
        while (  # noqa: ASYNC110 - the end is the daemon's to know
            time.monotonic() < deadline and await self._ask(lambda client: _is_running(client, unit.unit_id))
        ):
            await asyncio.sleep(0.1)
        return await self.collect(unit)

    async def collect(self, unit: Unit) -> Ended | None:
        self._pids.pop(unit.unit_id, None)
        return await self._ask(lambda client: _collect(client, unit.unit_id))

    async def tail(self, instance_id: str, lines: int) -> tuple[str, ...]:
        def read(client: Any) -> tuple[str, ...]:
            try:
                return last_lines(client.api.logs(self._name(instance_id), tail=lines), lines)
            except docker.errors.NotFound:
                return ()

        return await self._ask(read)

    async def memory_bytes(self, unit: Unit) -> int:
        def read(client: Any) -> int:
            if unit.unit_id not in self._pids:
                try:
                    self._pids[unit.unit_id] = int(client.api.inspect_container(unit.unit_id)["State"]["Pid"])
                except docker.errors.NotFound:
                    return 0
            return resident_bytes(self._pids[unit.unit_id])

        return await self._ask(read)

    async def close(self) -> None:
        for threads in (self._threads, self._pulling):
            threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            await asyncio.to_thread(self._client.close)

    def _name(self, instance_id: str) -> str:
        return f"stokehold-{self._home.home_id}-{instance_id}"

    async def _ask(self, function: Callable[[Any], _Result]) -> _Result:
        """`_call` for what can only fail because of the daemon itself."""
        try:
            return await self._call(function)
        except docker.errors.APIError as error:
            raise RuntimeUnavailable(f"the Docker daemon answers with an error: {_words(error)}") from error

    async def _call(self, function: Callable[[Any], _Result], threads: ThreadPoolExecutor | None = None) -> _Result:
        """`function(client)` in a thread. Raises RuntimeUnavailable when the daemon does not answer."""

        def run() -> _Result:
            try:
                return function(self._connected())
            except _DOWN as error:
                raise RuntimeUnavailable("the Docker daemon does not answer") from error

        return await asyncio.get_running_loop().run_in_executor(threads or self._threads, run)

    def _connected(self) -> Any:
        with self._connecting:
            if self._client is None:
                try:
                    self._client = docker.from_env(timeout=_CALL_TIMEOUT_S)
                except docker.errors.DockerException as error:
                    raise RuntimeUnavailable("no Docker daemon answers on this server") from error
            return self._client

    def _start(self, client: Any, spec: InstanceSpec, model_dir: Path) -> Unit:
        engine, name = spec.engine, self._name(spec.instance_id)
        argv, env = resolve(engine, host="0.0.0.0", port=engine.container_port, model_dir=_MODEL_DIR)
        running = _running_unit(client, name, spec)
        if running is not None:
            return running
        _remove(client, name)  # what an interrupted start left
        try:
            container = client.containers.create(
                engine.image,
                list(argv),
                name=name,
                environment={"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/.cache", **env},  # noqa: S108 - in the container
                labels={
                    _LABEL_HOME: self._home.home_id,
                    _LABEL_INSTANCE: spec.instance_id,
                    _LABEL_HASH: spec.spec_hash,
                    "stokehold.deployment": spec.deployment,
                },
                ports={f"{engine.container_port}/tcp": ("127.0.0.1", None)},
                volumes={str(model_dir.resolve()): {"bind": _MODEL_DIR, "mode": "ro"}},
                read_only=True,
                tmpfs={"/tmp": "rw,exec,nosuid,nodev,mode=1777"},  # noqa: S108 - in the container
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                mem_limit=engine.memory_limit_bytes or None,
                shm_size=engine.shm_bytes or None,
                device_requests=_device_requests(engine),
                log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": "8m", "max-file": "2"}),
            )
        except docker.errors.ImageNotFound as error:
            raise CannotRun(f"the image {engine.image!r} is not on this server", recheck=True) from error
        except docker.errors.APIError as error:
            raise StartFailed(f"Docker refused the container: {_words(error)}") from error
        try:
            container.start()
            container.reload()
        except docker.errors.APIError as error:
            _remove(client, container.id)  # a failed start leaves a container in state 'created'
            raise StartFailed(f"Docker could not start the container: {_words(error)}") from error
        return _unit_of(container.attrs, spec)


def _running_unit(client: Any, name: str, spec: InstanceSpec) -> Unit | None:
    """The container that runs `spec` already: the daemon was silent when this agent looked."""
    try:
        attrs = client.api.inspect_container(name)
    except docker.errors.APIError:
        return None
    fits = (attrs["Config"].get("Labels") or {}).get(_LABEL_HASH) == spec.spec_hash
    return _unit_of(attrs, spec) if fits and attrs["State"]["Running"] else None


def _unit_of(attrs: Any, spec: InstanceSpec) -> Unit:
    published = (attrs["NetworkSettings"]["Ports"] or {}).get(f"{spec.engine.container_port}/tcp") or []
    return Unit(
        instance_id=spec.instance_id,
        spec_hash=spec.spec_hash,
        runtime=RuntimeKind.DOCKER,
        unit_id=attrs["Id"][:12],
        running=True,
        port=int(published[0]["HostPort"]) if published else 0,
    )


def _device_requests(engine: EngineSpec) -> list[Any] | None:
    if not engine.gpu_indexes:
        return None
    return [DeviceRequest(device_ids=[str(index) for index in engine.gpu_indexes], capabilities=[["gpu"]])]


def _has_image(client: Any, image: str) -> bool:
    try:
        client.api.inspect_image(image)
    except docker.errors.NotFound:
        return False
    return True


def _is_running(client: Any, unit_id: str) -> bool:
    try:
        return bool(client.api.inspect_container(unit_id)["State"]["Running"])
    except docker.errors.NotFound:
        return False


def _kill(client: Any, unit_id: str, signal: str) -> None:
    try:
        client.api.kill(unit_id, signal=signal)
    except docker.errors.APIError as error:
        if error.status_code not in (404, 409):  # it ended by itself meanwhile
            raise
        log.debug("docker.not_running", unit=unit_id, error=_words(error))


def _remove(client: Any, name: str) -> None:
    try:
        client.api.remove_container(name, force=True, v=True)
    except docker.errors.NotFound:
        return


def _collect(client: Any, unit_id: str) -> Ended | None:
    """Kill it if it still runs, read its end, remove it."""
    try:
        if client.api.inspect_container(unit_id)["State"]["Running"]:
            _kill(client, unit_id, "SIGKILL")
            client.api.wait(unit_id)
        attrs = client.api.inspect_container(unit_id)
        lines = last_lines(client.api.logs(unit_id, tail=KEPT_LINES), KEPT_LINES)
    except docker.errors.NotFound:
        return None
    state, config = attrs["State"], attrs["Config"]
    if state.get("Error"):
        lines = (*lines, state["Error"])
    if state.get("OOMKilled"):
        lines = (*lines, "killed: out of memory (the container's memory limit)")
    _remove(client, unit_id)
    if state["Status"] == "created":  # what an interrupted start left
        return None
    command = ("docker", "run", config["Image"], *(config.get("Cmd") or ()))
    return Ended(
        exit_code=state["ExitCode"],
        lines=lines,
        command=command,
        ran_s=max(0.0, _unix(state["FinishedAt"]) - _unix(state["StartedAt"])),
    )


def _unix(text: str) -> float:
    """Docker's RFC 3339 with nanoseconds."""
    return dt.datetime.fromisoformat(text[:19] + "+00:00").timestamp()


def _pull(client: Any, image: str, progress: Progress, stop: threading.Event) -> None:
    repository, tag = parse_repository_tag(image)
    layers: dict[str, tuple[int, int]] = {}
    for event in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
        if stop.is_set():
            return
        if "error" in event:
            raise docker.errors.APIError(event["error"])
        detail = event.get("progressDetail") or {}
        if event.get("status") == "Downloading" and detail.get("total"):
            layers[event["id"]] = (detail["current"], detail["total"])
            progress(sum(done for done, _ in layers.values()) / sum(total for _, total in layers.values()))


def _words(error: BaseException) -> str:
    explanation = getattr(error, "explanation", None)
    return str(explanation or error or type(error).__name__)
