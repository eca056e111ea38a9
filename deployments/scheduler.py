"""Where an instance goes: feasibility -> fit -> score. Pure; README.md beside this file draws it.

Every server that is not chosen for want of something has its reason, in words.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from wire.engine import RuntimeKind

_GIB = 1 << 30
_FEW_GPUS = "not enough GPUs"


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
        """One sentence: how many servers were refused for which kind of reason; of a single one, the whole reason."""
        if not self.reasons:
            return "there is no server"
        if len(self.reasons) == 1:
            return f"does not fit on the only server: {next(iter(self.reasons.values()))}"
        counted = Counter(reason.split(":", 1)[0] for reason in self.reasons.values())
        told = ", ".join(f"{count} x {reason}" for reason, count in counted.most_common())
        return f"fits on none of {len(self.reasons)} servers: {told}"


@dataclass(frozen=True)
class Fleet:
    """All servers, with what is free on each. `release` returns a new one."""

    servers: Mapping[str, ServerCapacity]

    @classmethod
    def of(cls, *servers: ServerCapacity) -> Fleet:
        return cls({server.id: server for server in servers})

    def release(self, server_id: str | None, host_bytes: int, gpu_indexes: tuple[int, ...], each_bytes: int) -> Fleet:
        """As if an instance with this reservation were gone."""
        server = self.servers.get(server_id or "")
        if server is None:
            return self
        return Fleet({**self.servers, server.id: _without(server, -host_bytes, gpu_indexes, -each_bytes)})


@dataclass(frozen=True)
class Placed:
    """As many of the instances asked for as have a place, and the fleet with them. `refusal`: why not more."""

    placements: tuple[Placement, ...]
    fleet: Fleet
    refusal: Refusal | None = None


def place(request: Request, fleet: Fleet) -> Placement | Refusal:
    """The best place for one instance, or why there is none."""
    found = place_many(request, 1, fleet)
    return found.placements[0] if found.refusal is None else found.refusal


def place_many(request: Request, count: int, fleet: Fleet) -> Placed:
    """Places for `count` instances, each found as if by `place` after the one before; every server is judged once.

    Shapes are tried in order. The CPU is a way out only where no suitable server has a GPU at all: an instance meant
    for GPUs must not turn slow because they are full.
    """
    suitable, reasons = _judge(request, fleet)
    servers, occupied = dict(fleet.servers), dict(request.occupied)
    placements: list[Placement] = []
    for shape in _shapes(request, suitable):
        ranked: list[tuple[tuple[int, float, str], str, tuple[int, ...]]] = []
        for server in suitable:
            _rank(servers[server.id], shape, occupied, ranked, reasons)
        while ranked and len(placements) < count:
            _, server_id, chosen = heapq.heappop(ranked)
            placement = _placement(servers[server_id], chosen, shape, occupied.get(server_id, 0))
            placements.append(placement)
            servers[server_id] = _without(
                servers[server_id], placement.memory_bytes, placement.gpu_indexes, placement.gpu_memory_bytes
            )
            occupied[server_id] = occupied.get(server_id, 0) + 1
            _rank(servers[server_id], shape, occupied, ranked, reasons)
        if len(placements) >= count:
            return Placed(tuple(placements), Fleet(servers))
    return Placed(tuple(placements), Fleet(servers), Refusal(reasons) if len(placements) < count else None)


def explain(request: Request, fleet: Fleet) -> dict[str, str]:
    """Server name -> why an instance cannot go there; empty text: it fits."""
    suitable, answers = _judge(request, fleet)
    shapes = _shapes(request, suitable)
    for server in suitable:
        for shape in shapes:
            chosen, reason = _fit(server, shape)
            if chosen is not None:
                answers[server.name] = ""
                break
            _note(answers, server.name, reason)
    return answers


def _judge(request: Request, fleet: Fleet) -> tuple[list[ServerCapacity], dict[str, str]]:
    """Servers that could run it were they empty, and why each other one could not."""
    suitable: list[ServerCapacity] = []
    reasons: dict[str, str] = {}
    for server in fleet.servers.values():
        if reason := _infeasible(server, request):
            reasons[server.name] = reason
        else:
            suitable.append(server)
    return suitable, reasons


def _shapes(request: Request, suitable: list[ServerCapacity]) -> tuple[Shape, ...]:
    if len(request.shapes) > 1 and any(server.gpus for server in suitable):
        return tuple(shape for shape in request.shapes if shape.gpus)
    return request.shapes


def _rank(
    server: ServerCapacity,
    shape: Shape,
    occupied: Mapping[str, int],
    ranked: list[tuple[tuple[int, float, str], str, tuple[int, ...]]],
    reasons: dict[str, str],
) -> None:
    """Put the server among the candidates, or its reason among the reasons."""
    chosen, reason = _fit(server, shape)
    if chosen is None:
        _note(reasons, server.name, reason)
    else:
        heapq.heappush(ranked, (_score(server, shape, occupied.get(server.id, 0)), server.id, chosen))


def _note(reasons: dict[str, str], name: str, reason: str) -> None:
    """What is missing by the shape that comes nearest: one for more GPUs than there are says nothing new."""
    if not (name in reasons and reason.startswith(_FEW_GPUS)):
        reasons[name] = reason


def _without(server: ServerCapacity, host_bytes: int, gpu_indexes: tuple[int, ...], each_bytes: int) -> ServerCapacity:
    """The server with this much less that is free."""
    gpus = tuple(
        replace(gpu, free_bytes=gpu.free_bytes - each_bytes) if gpu.index in gpu_indexes else gpu for gpu in server.gpus
    )
    return replace(server, free_bytes=server.free_bytes - host_bytes, gpus=gpus)


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
        return None, f"{_FEW_GPUS}: needs {shape.gpus}, has {len(server.gpus)}"
    fitting = sorted((gpu.free_bytes, gpu.index) for gpu in server.gpus if gpu.free_bytes >= shape.gpu_bytes_each)
    if len(fitting) < shape.gpus:
        most = max(gpu.free_bytes for gpu in server.gpus)
        return None, (
            f"not enough GPU memory: needs {_gib(shape.gpu_bytes_each)} on each of {shape.gpus}, "
            f"{len(fitting)} have it (most free: {_gib(max(0, most))})"
        )
    return tuple(sorted(index for _, index in fitting[: shape.gpus])), ""  # the tightest: keeps large gaps whole


def _score(server: ServerCapacity, shape: Shape, siblings: int) -> tuple[int, float, str]:
    """Smaller is better: fewest siblings, then the most left free; the name makes it the same every time."""
    if shape.gpus:
        total = sum(gpu.total_bytes for gpu in server.gpus)
        free = sum(gpu.free_bytes for gpu in server.gpus) - shape.gpus * shape.gpu_bytes_each
    else:
        total, free = server.total_bytes, server.free_bytes - shape.host_bytes
    return siblings, -(free / total if total else 0.0), server.name


def _placement(server: ServerCapacity, gpus: tuple[int, ...], shape: Shape, siblings: int) -> Placement:
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
