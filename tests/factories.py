"""Plain functions that make rows for tests; each takes the fields that matter to the test, by name."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

from django.utils import timezone

from apikeys.models import ApiKey, Project
from deployments.models import Deployment, Instance, Phase, Revision
from fleet.models import Gateway, GatewayState, Server, ServerState
from fleet.reports import plain
from models_registry.models import Format, Model, ModelVersion, VersionState
from wire.engine import RuntimeKind
from wire.manifest import Manifest, ManifestFile
from wire.messages import Device, Facts, InstanceState, Load, RuntimeInfo

GIB = 1024**3
_numbers = itertools.count(1)


def make_facts(**fields: Any) -> Facts:
    """An ordinary host with 16 GiB that runs processes."""
    values: dict[str, Any] = {
        "hostname": "host",
        "host_id": "host-1",
        "os": "Debian GNU/Linux 12",
        "cpu_model": "CPU",
        "cpu_count": 8,
        "memory_bytes": 16 * GIB,
        "runtimes": (RuntimeInfo(kind=RuntimeKind.PROCESS, version="1", programs=("llama-server",)),),
        "relay_port": 9443,
        "addresses": ("10.0.0.1",),
    }
    return Facts(**(values | fields))


def make_gpu(index: int = 0, memory_bytes: int = 24 * GIB) -> Device:
    return Device(
        index=index,
        name="GPU",
        uuid=f"GPU-{index}",
        memory_total_bytes=memory_bytes,
        memory_used_bytes=0,
        utilization_percent=0.0,
    )


def make_load(**fields: Any) -> Load:
    """An idle host."""
    values: dict[str, Any] = {
        "cpu_percent": 3.0,
        "memory_total_bytes": 16 * GIB,
        "memory_available_bytes": 14 * GIB,
        "disk_total_bytes": 500 * GIB,
        "disk_free_bytes": 400 * GIB,
    }
    return Load(**(values | fields))


def make_server(
    *,
    online: bool = True,
    now: dt.datetime | None = None,
    facts: Facts | None = None,
    load: Load | None = None,
    gpus: int = 0,
    state: dict[str, Any] | None = None,
    **fields: Any,
) -> Server:
    """A server with an agent that is connected; `online=False`: it joined, and was never seen."""
    now = now or timezone.now()
    number = next(_numbers)
    server = Server.objects.create(**({"name": f"server-{number}", "public_key_pem": "-"} | fields))
    values: dict[str, Any] = {}
    if online:
        facts = facts or make_facts(hostname=server.name, host_id=f"host-{number}")
        load = load or make_load(devices=tuple(make_gpu(index) for index in range(gpus)))
        values = {
            "connected_since": now,
            "last_seen_at": now,
            "release": "0.1.0",
            "protocol": 1,
            "host_id": facts.host_id,
            "facts": plain(facts),
            "load": plain(load),
            "load_at": now,
        }
    ServerState.objects.create(server=server, **(values | (state or {})))
    return server


def make_ready_gateway(
    *, now: dt.datetime | None = None, state: dict[str, Any] | None = None, **fields: Any
) -> Gateway:
    """A gateway that is connected."""
    now = now or timezone.now()
    gateway = Gateway.objects.create(**({"name": f"gateway-{next(_numbers)}", "public_key_pem": "-"} | fields))
    values: dict[str, Any] = {"connected_since": now, "last_seen_at": now, "release": "0.1.0", "host_id": "host-gw"}
    GatewayState.objects.create(gateway=gateway, **(values | (state or {})))
    return gateway


def make_model_version(*, name: str | None = None, size_bytes: int = 100 * 1024**2, **fields: Any) -> ModelVersion:
    """A small GGUF that is ready; its file is in no store."""
    number = next(_numbers)
    model, _ = Model.objects.get_or_create(name=name or f"model-{number}")
    file = ManifestFile(path="model.gguf", size_bytes=size_bytes, sha256=f"{number:064x}")
    manifest = Manifest(files=(file,))
    values: dict[str, Any] = {
        "version": f"v{number}",
        "state": VersionState.READY,
        "progress": 1.0,
        "manifest": plain(manifest),
        "digest": manifest.digest,
        "size_bytes": size_bytes,
        "format": Format.GGUF,
        "architecture": "llama",
        "parameter_count": 135_000_000,
        "context_tokens": 8192,
        "layers": 30,
        "hidden_size": 576,
        "heads": 9,
        "kv_heads": 3,
        "head_dim": 64,
        "quantization": "Q4_1",
    }
    return ModelVersion.objects.create(model=model, **(values | fields))


def make_deployment(
    *,
    model_version: ModelVersion | None = None,
    engine: str = "llamacpp",
    parameters: dict[str, Any] | None = None,
    runtime: RuntimeKind = RuntimeKind.AUTO,
    placement: dict[str, Any] | None = None,
    **fields: Any,
) -> Deployment:
    """A running deployment at its first revision, with no instance yet."""
    deployment = Deployment.objects.create(**({"name": f"chat-{next(_numbers)}"} | fields))
    deployment.revision = Revision.objects.create(
        deployment=deployment,
        number=1,
        model_version=model_version or make_model_version(),
        engine=engine,
        runtime=runtime.value,
        parameters=parameters or {},
        placement=placement or {},
    )
    deployment.save()
    return deployment


def make_instance(
    *,
    deployment: Deployment | None = None,
    server: Server | None = None,
    ready: bool = True,
    now: dt.datetime | None = None,
    **fields: Any,
) -> Instance:
    """An instance that serves; `ready=False`: it was placed, and nothing more."""
    now = now or timezone.now()
    deployment = deployment or make_deployment()
    values: dict[str, Any] = {"phase": Phase.RUN, "phase_since": now, "memory_bytes": GIB}
    if ready:
        values |= {"state": InstanceState.READY.value, "state_since": now, "observed_at": now, "port": 40_000}
    return Instance.objects.create(
        **(
            {"deployment": deployment, "revision": deployment.revision, "server": server or make_server(now=now)}
            | values
            | fields
        )
    )


def make_project(**fields: Any) -> Project:
    return Project.objects.create(**({"name": f"project-{next(_numbers)}"} | fields))


def make_key(*, project: Project | None = None, now: dt.datetime | None = None, **fields: Any) -> tuple[ApiKey, str]:
    """A key and its whole text."""
    from apikeys.services import create_key

    values = {"name": f"key-{next(_numbers)}"} | fields
    return create_key(project=project or make_project(), now=now or timezone.now(), **values)
