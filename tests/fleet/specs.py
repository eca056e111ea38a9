"""Instance specs for tests."""

from __future__ import annotations

from typing import Any

from wire.engine import EngineSpec, RuntimeKind
from wire.manifest import Manifest
from wire.messages import InstanceSpec


def make_spec(instance_id: str = "i-0000000001", **fields: Any) -> InstanceSpec:
    """An engine to run."""
    engine = EngineSpec(engine="custom", image="", program="engine", argv=("--port", "{port}"))
    values: dict[str, Any] = {
        "instance_id": instance_id,
        "deployment": "chat",
        "revision": 1,
        "runtime": RuntimeKind.PROCESS,
        "engine": engine,
        "model": Manifest(files=()),
        "model_name": "m:1",
        "spec_hash": "0" * 16,
    }
    return InstanceSpec(**(values | fields))
