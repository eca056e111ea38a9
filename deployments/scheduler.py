"""Where an instance goes: feasibility -> fit -> score. Pure; README.md beside this file draws it.

Every server that is not chosen for want of something has its reason, in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from wire.engine import RuntimeKind

_GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    index: int
    total_bytes: int
    free_bytes: int  # neither reserved nor used by anything else


@dataclass(frozen=True)
class ServerCapacity:
    """A server as the scheduler sees it. `closed`: why nothing new goes there; empty when it is open."""

    id: str
    name: str
    total_bytes: int
    free_bytes: int
    gpus: tuple[Gpu, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    docker: bool = False
    programs: frozenset[str] = frozenset()
    closed: str = ""


@dataclass(frozen=True)
class Shape:
    """One way to run an instance: on so many GPUs (0: on the CPU), with so much memory."""

    gpus: int
    host_bytes: int
    gpu_bytes_each: int = 0


@dataclass(frozen=True)
class Request:
    """One instance to place. `occupied`: how many of its siblings each server holds."""

    shapes: tuple[Shape, ...]
    program: str
    runtime: RuntimeKind = RuntimeKind.AUTO
    labels: Mapping[str, str] = field(default_factory=dict)
    servers: frozenset[str] = frozenset()  # names; empty: any
    avoid: Mapping[str, str] = field(default_factory=dict)  # server id -> why not there
    occupied: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    server_id: str
    server_name: str
    gpu_indexes: tuple[int, ...]
    memory_bytes: int
    gpu_memory_bytes: int  # on each GPU
    reason: str


@dataclass(frozen=True)
class Refusal:
    """Nothing fits. `reasons`: server name -> why not there."""

    reasons: Mapping[str, str]
    problem: str = ""  # set: no server would do

    def summary(self) -> str:
        """One sentence: how many servers were refused for which kind of reason."""
        if not self.reasons:
            return "there is no server"
        counted = Counter(reason.split(":", 1)[0] for reason in self.reasons.values())
        servers = len(self.reasons)
        told = ", ".join(f"{count} x {reason}" if servers > 1 else reason for reason, count in counted.most_common())
        return (
            f"fits on none of {servers} servers: {told}" if servers > 1 else f"does not fit on the only server: {told}"
        )


@dataclass(frozen=True)
class Fleet:
    """All servers, with what is free on each. `reserve` and `release` return a new one."""

    servers: Mapping[str, ServerCapacity]

    @classmethod
    def of(cls, *servers: ServerCapacity) -> Fleet:
        return cls({server.id: server for server in servers})

    def reserve(self, placement: Placement) -> Fleet:
        return self.release(
            placement.server_id, -placement.memory_bytes, placement.gpu_indexes, -placement.gpu_memory_bytes
        )

    def release(self, server_id: str | None, host_bytes: int, gpu_indexes: tuple[int, ...], each_bytes: int) -> Fleet:
        """As if an instance with this reservation were gone."""
        server = self.servers.get(server_id or "")
        if server is None:
            return self
        gpus = tuple(
            replace(gpu, free_bytes=gpu.free_bytes + each_bytes) if gpu.index in gpu_indexes else gpu
            for gpu in server.gpus
        )
        changed = replace(server, free_bytes=server.free_bytes + host_bytes, gpus=gpus)
        return Fleet({**self.servers, server.id: changed})


def place(request: Request, fleet: Fleet) -> Placement | Refusal:
    """The best place for one instance, or why there is none.

    Shapes are tried in order. The CPU is a way out only where no suitable server has a GPU at all: an instance meant
    for GPUs must not turn slow because they are full.
    """
    reasons: dict[str, str] = {}
    suitable: list[ServerCapacity] = []
    for server in fleet.servers.values():
        if reason := _infeasible(server, request):
            reasons[server.name] = reason
        else:
            suitable.append(server)
    gpus_exist = len(request.shapes) > 1 and any(server.gpus for server in suitable)
    for shape in request.shapes:
        if shape.gpus == 0 and gpus_exist:
            continue
        best: tuple[tuple[int, float, str], ServerCapacity, tuple[int, ...]] | None = None
        for server in suitable:
            chosen, reason = _fit(server, shape)
            if chosen is None:
                reasons[server.name] = reason
                continue
            score = _score(server, shape, request)
            if best is None or score < best[0]:
                best = (score, server, chosen)
        if best is not None:
            return _placement(best[1], best[2], shape, request)
    return Refusal(reasons)


def explain(request: Request, fleet: Fleet) -> dict[str, str]:
    """Server name -> why an instance cannot go there; empty text: it fits."""
    answers: dict[str, str] = {}
    for server in fleet.servers.values():
        found = place(request, Fleet.of(server))
        answers[server.name] = "" if isinstance(found, Placement) else found.reasons[server.name]
    return answers


def _infeasible(server: ServerCapacity, request: Request) -> str:
    """Why this server cannot run it however empty it is; empty when it can."""
    if server.closed:
        return server.closed
    if request.servers and server.name not in request.servers:
        return "not among the servers asked for"
    for key, value in request.labels.items():
        if server.labels.get(key) != value:
            return f"label differs: wants {key}={value}, has {server.labels.get(key, 'none')}"
    if why := request.avoid.get(server.id):
        return why
    by_docker = server.docker and request.runtime is not RuntimeKind.PROCESS
    by_process = request.program in server.programs and request.runtime is not RuntimeKind.DOCKER
    if by_docker or by_process:
        return ""
    if request.runtime is RuntimeKind.DOCKER:
        return "no Docker there"
    if request.runtime is RuntimeKind.PROCESS:
        return f"no program {request.program} there"
    return f"neither Docker nor a program {request.program} there"


def _fit(server: ServerCapacity, shape: Shape) -> tuple[tuple[int, ...] | None, str]:
    """GPU indexes that hold it (none for the CPU), or None and why not."""
    if shape.host_bytes > server.free_bytes:
        return None, (
            f"not enough memory: needs {_gib(shape.host_bytes)}, {_gib(max(0, server.free_bytes))} of "
            f"{_gib(server.total_bytes)} free"
        )
    if shape.gpus == 0:
        return (), ""
    if len(server.gpus) < shape.gpus:
        return None, f"not enough GPUs: needs {shape.gpus}, has {len(server.gpus)}"
    fitting = sorted((gpu.free_bytes, gpu.index) for gpu in server.gpus if gpu.free_bytes >= shape.gpu_bytes_each)
    if len(fitting) < shape.gpus:
        most = max(gpu.free_bytes for gpu in server.gpus)
        return None, (
            f"not enough GPU memory: needs {_gib(shape.gpu_bytes_each)} on each of {shape.gpus}, "
            f"{len(fitting)} have it (most free: {_gib(max(0, most))})"
        )
    return tuple(sorted(index for _, index in fitting[: shape.gpus])), ""  # the tightest: keeps large gaps whole


def _score(server: ServerCapacity, shape: Shape, request: Request) -> tuple[int, float, str]:
    """Smaller is better: fewest siblings, then the most left free; the name makes it the same every time."""
    if shape.gpus:
        total = sum(gpu.total_bytes for gpu in server.gpus)
        free = sum(gpu.free_bytes for gpu in server.gpus) - shape.gpus * shape.gpu_bytes_each
    else:
        total, free = server.total_bytes, server.free_bytes - shape.host_bytes
    return request.occupied.get(server.id, 0), -(free / total if total else 0.0), server.name


def _placement(server: ServerCapacity, gpus: tuple[int, ...], shape: Shape, request: Request) -> Placement:
    siblings = request.occupied.get(server.id, 0)
    on = f"GPU {', '.join(map(str, gpus))}" if gpus else "the CPU"
    needs = f"{_gib(shape.gpu_bytes_each)} a GPU" if gpus else _gib(shape.host_bytes)
    spread = f"holds {siblings} more of it" if siblings else "holds none of it yet"
    return Placement(
        server_id=server.id,
        server_name=server.name,
        gpu_indexes=gpus,
        memory_bytes=shape.host_bytes,
        gpu_memory_bytes=shape.gpu_bytes_each,
        reason=f"on {on}: needs {needs}, {_gib(server.free_bytes)} of memory free; {spread}",
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB"
