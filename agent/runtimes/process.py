"""Engines as plain processes: each in a session of its own, so that it outlives the agent and is adopted by the next.

A process is known by pid, birth (boot id and kernel ticks, which no change of the clock moves) and spec hash, kept in
`HOME/instances/<id>/process.json`; should the agent die before that file is written, by the marks in the process's
environment. Its output goes straight to a file, which is cut when it grows. The exit code of an adopted process is
unknown (None): only a parent is told it. `memory_limit_bytes` is not enforced here: a limit on address space breaks
engines that map their weights.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import msgspec
import psutil
import structlog

from agent.errors import CannotRun, StartFailed
from agent.home import AgentConfig, AgentHome, write_whole
from agent.reconcile import Unit
from agent.records import KEPT_LINES
from agent.runtimes.base import Ended, Progress, last_lines, resolve
from wire.engine import EngineSpec, RuntimeKind
from wire.messages import InstanceSpec, RuntimeInfo

LOG_LIMIT_BYTES = 8 * 2**20
_KEPT_BYTES = 2**20
_PASSED_ON = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
_HOME_MARK, _INSTANCE_MARK, _HASH_MARK, _PORT_MARK = (
    "STOKEHOLD_UNIT_HOME",
    "STOKEHOLD_UNIT_INSTANCE",
    "STOKEHOLD_UNIT_SPEC",
    "STOKEHOLD_UNIT_PORT",
)

log = structlog.get_logger(__name__)


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`process.json`: enough to know the process again."""

    instance_id: str
    spec_hash: str
    pid: int
    born: str
    port: int
    started_at: float  # Unix time
    command: tuple[str, ...]


class ProcessRuntime:
    """Runs programs of this server."""

    kind = RuntimeKind.PROCESS

    def __init__(self, home: AgentHome, config: AgentConfig) -> None:
        self._home = home
        self._config = config
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._looked_for_lost = False

    async def info(self) -> RuntimeInfo | None:
        names = sorted({*self._config.programs, "llama-server", "vllm", "sglang", "text-generation-launcher"})
        found = tuple(name for name in names if self._find(name) is not None)
        return RuntimeInfo(kind=self.kind, version=os.uname().release, programs=found)

    async def missing(self, engine: EngineSpec) -> str:
        if not engine.program:
            return "the engine names no program for the process runtime"
        if self._find(engine.program) is None:
            return f"the program {engine.program!r} is not on this server"
        return ""

    async def prepare(self, engine: EngineSpec, progress: Progress) -> None:
        reason = await self.missing(engine)
        if reason:
            raise CannotRun(reason, remedy="Install it, or name its path in the agent's config.json.", recheck=True)

    async def units(self) -> list[Unit]:
        return await asyncio.to_thread(self._units)

    async def start(self, spec: InstanceSpec, model_dir: Path, port: int) -> Unit:
        await self.prepare(spec.engine, lambda _: None)
        starting = asyncio.create_task(asyncio.to_thread(self._start, spec, model_dir, port))
        return await asyncio.shield(starting)  # a start is never left half done

    async def stop(self, unit: Unit, grace_s: float) -> Ended | None:
        record = self._read(unit.instance_id)
        if record is not None and str(record.pid) == unit.unit_id:
            self._signal(record, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while self._alive(record) and time.monotonic() < deadline:  # noqa: ASYNC110 - not always our child
                await asyncio.sleep(0.05)
        return await self.collect(unit)

    async def collect(self, unit: Unit) -> Ended | None:
        record = self._read(unit.instance_id)
        if record is None or str(record.pid) != unit.unit_id:
            return None
        self._signal(record, signal.SIGKILL)  # what is left of the group, its leader or not
        deadline = time.monotonic() + 10
        while self._alive(record) and time.monotonic() < deadline:  # noqa: ASYNC110 - not always our child
            await asyncio.sleep(0.02)
        child = self._children.pop(record.pid, None)
        code = child.poll() if child is not None else None
        lines = await asyncio.to_thread(_tail_of, self._log(unit.instance_id), KEPT_LINES)
        self._file(unit.instance_id).unlink(missing_ok=True)
        ran_s = max(0.0, time.time() - record.started_at)
        exit_code = 128 - code if code is not None and code < 0 else code  # as a shell and Docker say it
        return Ended(exit_code=exit_code, lines=lines, command=record.command, ran_s=ran_s)

    async def tail(self, instance_id: str, lines: int) -> tuple[str, ...]:
        return await asyncio.to_thread(self._tail, instance_id, lines)

    async def memory_bytes(self, unit: Unit) -> int:
        return await asyncio.to_thread(resident_bytes, int(unit.unit_id))

    async def close(self) -> None:
        self._children.clear()

    def _tail(self, instance_id: str, lines: int) -> tuple[str, ...]:
        current = self._log(instance_id)
        return _tail_of(current, lines) or _tail_of(current.with_suffix(".1.log"), lines)

    def _file(self, instance_id: str) -> Path:
        return self._home.instance(instance_id) / "process.json"

    def _log(self, instance_id: str) -> Path:
        return self._home.instance(instance_id) / "output.log"

    def _find(self, program: str) -> str | None:
        configured = self._config.programs.get(program)
        return shutil.which(configured.path if configured is not None else program)

    def _read(self, instance_id: str) -> ProcessRecord | None:
        try:
            return msgspec.json.decode(self._file(instance_id).read_bytes(), type=ProcessRecord)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _units(self) -> list[Unit]:
        if not self._looked_for_lost:
            self._find_lost()
            self._looked_for_lost = True
        units = []
        for file in self._home.instances.glob("*/process.json"):
            record = self._read(file.parent.name)
            if record is None or record.instance_id != file.parent.name:
                continue
            units.append(self._unit(record))
            cut(self._log(record.instance_id))
        return units

    def _unit(self, record: ProcessRecord) -> Unit:
        return Unit(
            instance_id=record.instance_id,
            spec_hash=record.spec_hash,
            runtime=self.kind,
            unit_id=str(record.pid),
            running=self._alive(record),
            port=record.port,
        )

    def _alive(self, record: ProcessRecord) -> bool:
        child = self._children.get(record.pid)
        if child is not None:
            return child.poll() is None
        return _born(record.pid) == record.born and not _is_zombie(record.pid)

    def _signal(self, record: ProcessRecord, number: signal.Signals) -> None:
        """To the whole group, unless its id belongs to a stranger by now."""
        if _born(record.pid) not in (record.born, "") or _of_another_boot(record.born):
            return
        try:  # with the leader gone the id is still the group's: the kernel gives it to nobody while a member lives
            os.killpg(record.pid, number)
        except (ProcessLookupError, PermissionError):
            log.debug("process.group_gone", pid=record.pid)

    def _start(self, spec: InstanceSpec, model_dir: Path, wished_port: int) -> Unit:
        program = self._find(spec.engine.program)
        if program is None:
            raise CannotRun(f"the program {spec.engine.program!r} is not on this server", recheck=True)
        port = free_port(wished_port)
        argv, env = resolve(spec.engine, host="127.0.0.1", port=port, model_dir=str(model_dir))
        configured = self._config.programs.get(spec.engine.program)
        environment = {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order of NVML's indexes
            "CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in spec.engine.gpu_indexes),
            **(configured.env if configured is not None else {}),
            **env,
            _HOME_MARK: self._home.home_id,
            _INSTANCE_MARK: spec.instance_id,
            _HASH_MARK: spec.spec_hash,
            _PORT_MARK: str(port),
        }
        folder = self._home.instance(spec.instance_id)
        folder.mkdir(parents=True, exist_ok=True)
        output = self._log(spec.instance_id)
        if output.exists():
            output.replace(output.with_suffix(".1.log"))
        with output.open("ab") as file:
            try:
                child = subprocess.Popen(  # noqa: S603 - a spec signed by the master, no shell
                    [program, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise StartFailed(f"{program} could not be started: {error}") from error
        self._children[child.pid] = child
        record = ProcessRecord(
            instance_id=spec.instance_id,
            spec_hash=spec.spec_hash,
            pid=child.pid,
            born=_born(child.pid),
            port=port,
            started_at=time.time(),
            command=(program, *argv),
        )
        try:
            write_whole(self._file(spec.instance_id), msgspec.json.encode(record))
        except OSError as error:
            self._signal(record, signal.SIGKILL)
            child.wait(timeout=10)
            raise StartFailed(f"the process could not be recorded: {error}") from error
        return self._unit(record)

    def _find_lost(self) -> None:
        """Write records for processes that the agent before started, but died too early to record."""
        recorded = {
            record.pid
            for file in self._home.instances.glob("*/process.json")
            if (record := self._read(file.parent.name))
        }
        for process in psutil.process_iter():
            try:
                if process.pid in recorded or os.getsid(process.pid) != process.pid:
                    continue
                env = process.environ()
                if env.get(_HOME_MARK) != self._home.home_id:
                    continue
                record = ProcessRecord(
                    instance_id=env[_INSTANCE_MARK],
                    spec_hash=env[_HASH_MARK],
                    pid=process.pid,
                    born=_born(process.pid),
                    port=int(env[_PORT_MARK]),
                    started_at=process.create_time(),
                    command=tuple(process.cmdline()),
                )
            except (psutil.Error, ProcessLookupError, PermissionError, KeyError, ValueError):
                continue  # gone, another user's, or not ours
            if process.status() != psutil.STATUS_ZOMBIE and not self._file(record.instance_id).exists():
                log.info("process.found_again", instance=record.instance_id, pid=record.pid)
                write_whole(self._file(record.instance_id), msgspec.json.encode(record))


def _born(pid: int) -> str:
    """Tells this process from any other that has or had its pid; empty when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{_boot_id()}:{fields[19]}"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
    try:  # a system without /proc
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


def _of_another_boot(born: str) -> bool:
    boot_id, colon, _ = born.partition(":")
    return bool(colon) and boot_id != _boot_id()


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "boot"


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def free_port(wished: int) -> int:
    """`wished` when it is free on loopback, else another free port."""
    for port in (wished, 0) if wished else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise StartFailed("no free port on loopback")


def cut(path: Path) -> None:
    """Keep the last part of an output that grew too long. A few lines written meanwhile may be lost."""
    try:
        if path.stat().st_size <= LOG_LIMIT_BYTES:
            return
        with path.open("r+b") as file:
            file.seek(-_KEPT_BYTES, os.SEEK_END)
            path.with_suffix(".1.log").write_bytes(file.read())
            file.truncate(0)  # the engine appends, so it goes on at the start
    except FileNotFoundError:
        return


def _tail_of(path: Path, count: int) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _KEPT_BYTES))
            return last_lines(file.read(), count)
    except FileNotFoundError:
        return ()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all below it."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return total
