"""Agents of a test's servers, in one object: they do at once, and report, whatever their desired state says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import msgspec

from deployments import services
from deployments.controller import Controller
from deployments.models import Deployment, Event, Instance, Phase
from deployments.services import record_observed
from fleet.models import Server, ServerDesired, ServerState
from tests.factories import make_model_version, make_server
from wire.messages import DesiredState, InstanceState, LastExit, Observed, ObservedInstance

CRASH = LastExit(
    attempt=1,
    exit_code=1,
    at=0.0,
    ran_s=0.4,
    command=("llama-server", "-m", "model.gguf"),
    lines=("error: failed to load model",),
    cause="The model could not be loaded.",
    remedy="Import it again.",
)


class Agents:
    """Time, one controller, and the agents. `run` lets a while pass in steps of half a second."""

    def __init__(self, now: dt.datetime) -> None:
        self.now = now
        self.monotonic = 1000.0
        self.controller = Controller("test", clock=lambda: self.monotonic)
        self.dead: set[str] = set()  # names of servers that are not heard of
        self.began = now
        self.fails: Callable[[str, int], bool] = lambda server, revision: False

    def pass_time(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)
        self.monotonic += seconds

    def run(self, seconds: float = 8.0, each: Callable[[], None] = lambda: None) -> None:
        for _ in range(int(seconds * 2)):
            self.act()
            self.controller.step(self.now)
            each()
            self.pass_time(0.5)

    def act(self) -> None:
        for server in Server.objects.filter(revoked_at__isnull=True, state__last_seen_at__isnull=False):
            if server.name not in self.dead:
                self._report(server)

    def _report(self, server: Server) -> None:
        row = ServerDesired.objects.filter(server=server).first()
        state = msgspec.convert(row.payload, DesiredState) if row else DesiredState(server_id=server.pk, generation=0)
        units = []
        for spec in state.instances:
            broken = self.fails(server.name, spec.revision)
            exits = tuple(
                msgspec.structs.replace(CRASH, attempt=number, at=self.began.timestamp() - 60 + number)
                for number in (1, 2, 3)
            )
            units.append(
                ObservedInstance(
                    instance_id=spec.instance_id,
                    spec_hash=spec.spec_hash,
                    state=InstanceState.BACKOFF if broken else InstanceState.READY,
                    port=0 if broken else 40_000,
                    restarts=3 if broken else 0,
                    exits=exits if broken else (),
                )
            )
        observed = Observed(generation=state.generation, instances=tuple(units))
        ServerState.objects.filter(server=server).update(
            last_seen_at=self.now, observed=msgspec.to_builtins(observed), observed_generation=state.generation
        )
        record_observed(server.pk, observed, self.now)

    def kinds(self) -> set[str]:
        return set(Event.objects.values_list("kind", flat=True))

    def ready_on(self) -> list[str]:
        """Names of the servers whose instances are in the route."""
        rows = Instance.objects.filter(phase=Phase.RUN, state="ready")
        return sorted(rows.values_list("server__name", flat=True))


def deploy(world: Agents, **fields) -> Deployment:
    fields = {"name": "chat", "model_version": make_model_version(), "now": world.now} | fields
    return services.create_deployment(**fields)


def servers(world: Agents, *names: str, **fields) -> list[Server]:
    return [make_server(name=name, now=world.now, **fields) for name in names]


def state(deployment: Deployment) -> str:
    deployment.refresh_from_db()
    return services.status_of(deployment).state.value


def told(kind: str) -> int:
    return Event.objects.filter(kind=kind).count()


def live() -> list[Instance]:
    return list(Instance.objects.exclude(phase=Phase.ENDED))
