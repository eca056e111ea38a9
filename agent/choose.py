"""Which runtime an instance runs on here. Chosen once a spec, and remembered, so that it never flips."""

from __future__ import annotations

from collections.abc import Mapping

from agent.errors import CannotRun
from agent.runtimes.base import Runtime
from wire.engine import RuntimeKind
from wire.messages import InstanceSpec

_REMEDY = "Start Docker or pull the image, or install the program and name its path in the agent's config.json."


async def choose_runtime(
    spec: InstanceSpec, runtimes: Mapping[RuntimeKind, Runtime], remembered: RuntimeKind
) -> RuntimeKind:
    """The runtime for `spec`: the remembered one; the one it asks for; for AUTO docker where it can, else process.

    Raises:
        CannotRun: none can; worth a recheck.
    """
    if spec.runtime is not RuntimeKind.AUTO:
        if spec.runtime not in runtimes:
            raise CannotRun(f"the {spec.runtime} runtime is switched off on this server", remedy=_REMEDY)
        return spec.runtime
    if remembered in runtimes:
        return remembered
    reasons = []
    for kind in (RuntimeKind.DOCKER, RuntimeKind.PROCESS):
        if kind not in runtimes:
            continue
        reason = await runtimes[kind].missing(spec.engine)
        if not reason:
            return kind
        reasons.append(reason)
    raise CannotRun("; ".join(reasons) or "no runtime on this server", remedy=_REMEDY, recheck=True)
