"""A small world without a database: servers with memory, agents, a gateway, and the pure planner over them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from deployments.planner import Outcome, Reservation, Subject, place_all, plan_rollouts
from deployments.rollout import Host, Seen, Stage, Wanted
from deployments.scheduler import Fleet, Placement, ServerCapacity, Shape
from wire.messages import InstanceState

GIB = 1 << 30
START_S = 3
DRAIN_TIMEOUT_S = 60.0


@dataclass
class Unit:
    """An instance, as the database and the agent know it."""

    id: str
    revision: int
    server: str
    memory_gib: int
    created_at: float
    stage: Stage = Stage.RUN
    stage_since: float = 0.0
    reason: str = ""
    state: InstanceState = InstanceState.PENDING
    exits: int = 0
    in_flight: int = 0
    busy_for_s: int = 0  # requests still run this long after it left the route


@dataclass
class World:
    """`servers`: memory in GiB by name. `tick` is one second: agents act, then the controller decides once."""

    servers: dict[str, int]
    replicas: int = 1
    revision: int = 1
    memory_gib: int = 4
    failing: set[int] = field(default_factory=set)  # revisions that never come up
    failing_on: set[str] = field(default_factory=set)  # servers where nothing comes up
    hosts: dict[str, Host] = field(default_factory=dict)  # those that are not sound
    busy_for_s: int = 0
    now: float = 1000.0
    units: dict[str, Unit] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)  # server -> why, for the current revision
    outcome: Outcome | None = None
    _numbers: itertools.count = field(default_factory=lambda: itertools.count(1))

    def ready(self, revision: int | None = None) -> list[Unit]:
        """Those in the route."""
        return [
            unit
            for unit in self.live()
            if unit.stage is Stage.RUN
            and unit.state is InstanceState.READY
            and self.host(unit.server) in (Host.SOUND, Host.DRAINING)
            and revision in (None, unit.revision)
        ]

    def live(self) -> list[Unit]:
        return [unit for unit in self.units.values() if unit.stage is not Stage.ENDED]

    def host(self, server: str) -> Host:
        return self.hosts.get(server, Host.SOUND)

    def used_gib(self, server: str) -> int:
        return sum(unit.memory_gib for unit in self.live() if unit.server == server)

    def update(self, memory_gib: int | None = None) -> None:
        self.revision += 1
        self.memory_gib = memory_gib or self.memory_gib
        self.given_up = {}

    def tick(self) -> None:
        self.now += 1
        for unit in self.live():
            self._agent(unit)
        self._decide()
        for name, size in self.servers.items():
            assert self.used_gib(name) <= size, f"more than {name} has: {self.live()}"

    def settle(self, limit_s: int = 400, each=lambda: None) -> None:
        """Until nothing changed for a while; fails when that never comes."""
        quiet = 0
        for _ in range(limit_s):
            before = self._shape()
            self.tick()
            each()
            quiet = quiet + 1 if self._shape() == before else 0
            if quiet > 2 * START_S + DRAIN_TIMEOUT_S:
                return
        raise AssertionError(f"never settles: {self.live()}, {self.outcome}")

    def _shape(self) -> list[tuple[str, Stage, InstanceState]]:
        return sorted((unit.id, unit.stage, unit.state) for unit in self.units.values())

    def _agent(self, unit: Unit) -> None:
        if self.host(unit.server) in (Host.LOST, Host.EVICTED, Host.REVOKED):
            return
        if unit.stage is Stage.STOP:
            unit.state = InstanceState.STOPPED
        elif unit.revision in self.failing or unit.server in self.failing_on:
            unit.exits, unit.state = unit.exits + 1, InstanceState.BACKOFF
        elif self.now - unit.created_at >= START_S:
            unit.state = InstanceState.READY
        else:
            unit.state = InstanceState.STARTING
        if unit.stage is Stage.RUN:
            unit.in_flight = 1 if unit.state is InstanceState.READY else 0
        elif self.now - unit.stage_since >= unit.busy_for_s:
            unit.in_flight = 0

    def _seen(self, unit: Unit) -> Seen:
        host = self.host(unit.server)
        return Seen(
            id=unit.id,
            revision=unit.revision,
            server_id=unit.server,
            server_name=unit.server,
            stage=unit.stage,
            stage_since=unit.stage_since,
            created_at=unit.created_at,
            state=unit.state,
            host=host,
            recent_exits=unit.exits,
            gone=unit.stage is Stage.STOP and unit.state is InstanceState.STOPPED,
            routable=unit.stage is Stage.RUN and unit.state is InstanceState.READY,
            in_flight=unit.in_flight,
        )

    def _decide(self) -> None:
        live = self.live()
        subject = Subject(
            deployment_id=1,
            wanted=Wanted(self.replicas, self.revision),
            instances=tuple(self._seen(unit) for unit in live),
            reservations={unit.id: Reservation(unit.server, unit.memory_gib * GIB, (), 0) for unit in live},
            shapes=(Shape(0, self.memory_gib * GIB),),
            program="llama-server",
            failed_on=dict(self.given_up),
        )
        (self.outcome,) = place_all(plan_rollouts([subject], self.now, DRAIN_TIMEOUT_S), self._fleet())
        for move in self.outcome.moves:
            unit = self.units[move.instance_id]
            if move.to is Stage.STOP and unit.stage is Stage.RUN and unit.state is InstanceState.BACKOFF:
                self.given_up[unit.server] = "kept failing there"
            if unit.stage is Stage.DRAIN and move.to is Stage.STOP and self.host(unit.server) is Host.SOUND:
                late = self.now - unit.stage_since >= DRAIN_TIMEOUT_S
                assert late or not unit.in_flight, f"stopped under a request: {unit}"
            unit.stage, unit.stage_since, unit.reason = move.to, self.now, move.reason
        for placement in self.outcome.placements:
            self._create(placement)

    def _create(self, placement: Placement) -> None:
        key = f"i{next(self._numbers):04d}"
        self.units[key] = Unit(
            key, self.revision, placement.server_id, self.memory_gib, self.now, busy_for_s=self.busy_for_s
        )

    def _fleet(self) -> Fleet:
        words = {Host.SOUND: "", Host.DRAINING: "being drained"}
        return Fleet.of(
            *(
                ServerCapacity(
                    id=name,
                    name=name,
                    total_bytes=size * GIB,
                    free_bytes=(size - self.used_gib(name)) * GIB,
                    programs=frozenset({"llama-server"}),
                    closed=words.get(self.host(name), "lost: not heard of"),
                )
                for name, size in self.servers.items()
                if self.host(name) is not Host.REVOKED
            )
        )
