"""`status`: processes as the supervisor sees them, servers and deployments as the database does, and one verdict."""

from __future__ import annotations

import datetime as dt
import json
import time
from typing import Any

import psutil

from config.launcher import http_calls, preparation
from config.launcher.installation import Installation
from config.launcher.supervision import ProcessStatus, Supervisor

_POLL_S = 0.5


def status(installation: Installation, *, as_json: bool, wait_s: float) -> int:
    """Print the status; 0 when all is well, else 1. With `wait_s`, only after it is well or that time is over."""
    deadline = time.monotonic() + wait_s
    found = look(installation)
    while not found["ready"] and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        found = look(installation)
    print(json.dumps(found, indent=1) if as_json else _text(found))
    return 0 if found["ready"] else 1


def look(installation: Installation) -> dict[str, Any]:
    """One look at everything. `problems` says why `ready` is false."""
    processes = [_process(process) for process in Supervisor(installation.home).processes()]
    found: dict[str, Any] = {
        "ready": False,
        "home": str(installation.home.path),
        "processes": processes,
        "servers": [],
        "gateways": [],
        "deployments": [],
        "problems": [],
    }
    if not processes:
        found["problems"].append("nothing runs: start it with `./stokehold up`")
        return found
    found["problems"] += [f"{p['name']} is {p['state'].lower()}" for p in processes if p["state"] != "RUNNING"]
    for name, url in (("master", installation.master_url), ("gateway", installation.gateway_url)):
        if not http_calls.answers(f"{url}/readyz"):
            found["problems"].append(f"{name} does not answer at {url}/readyz")
    found |= _rows(installation, found["problems"])
    found["ready"] = not found["problems"]
    return found


def _process(process: ProcessStatus) -> dict[str, Any]:
    memory = 0
    uptime = 0.0
    if process.pid:
        uptime = max(0.0, time.time() - process.started_at)
        try:
            memory = psutil.Process(process.pid).memory_info().rss
        except psutil.Error:
            memory = 0  # it ended between the two looks
    return {
        "name": process.name,
        "state": process.state,
        "pid": process.pid or None,
        "uptime_s": round(uptime, 1),
        "memory_bytes": memory,
    }


def _rows(installation: Installation, problems: list[str]) -> dict[str, Any]:
    """Servers, gateways and deployments; a database that cannot be read is a problem, not an error."""
    preparation.use_django_once(installation)
    from django.db import Error, connection

    try:
        return _read_rows(problems)
    except Error as error:
        problems.append(f"the database cannot be read: {str(error).strip().splitlines()[0]}")
        return {}
    finally:
        connection.close()


def _read_rows(problems: list[str]) -> dict[str, Any]:
    from deployments.models import Deployment
    from deployments.services import statuses
    from fleet.models import Gateway, Server

    now = dt.datetime.now(dt.UTC)
    servers = [_node(row, now) for row in Server.objects.filter(revoked_at__isnull=True).select_related("state")]
    gateways = [_node(row, now) for row in Gateway.objects.filter(revoked_at__isnull=True).select_related("state")]
    problems += [f"server {row['name']} is {row['status']}" for row in servers if not row["connected"]]
    problems += [f"gateway {row['name']} is {row['status']}" for row in gateways if not row["connected"]]
    live = Deployment.objects.filter(deleted_at__isnull=True).order_by("name")
    deployments = []
    for deployment, state in _pairs(live, statuses(live)):
        deployments.append(
            {
                "name": deployment.name,
                "state": str(state.state),
                "ready": state.ready,
                "desired": state.desired,
                "reason": state.reason,
            }
        )
        if deployment.running and (state.ready < state.desired or str(state.state) != "ready"):
            problems.append(f"deployment {deployment.name} is {state.state}: {state.ready} of {state.desired} ready")
    return {"servers": servers, "gateways": gateways, "deployments": deployments}


def _pairs(live: Any, found: Any) -> list[tuple[Any, Any]]:
    return [(deployment, found[deployment.pk]) for deployment in live]


def _node(row: Any, now: dt.datetime) -> dict[str, Any]:
    from django.conf import settings

    from fleet.status import NodeStatus, status_of

    status = status_of(row, now, settings.LEASE_S)
    return {
        "id": row.pk,
        "name": row.name,
        "availability": getattr(row, "availability", None),
        "status": status.state.value,
        "connected": status.state is NodeStatus.ONLINE,
        "seen_ago_s": None if status.age_s is None else round(status.age_s, 1),
    }


def _text(found: dict[str, Any]) -> str:
    lines = [f"Stokehold in {found['home']}: {'all is well' if found['ready'] else 'not ready'}"]
    lines += ["", f"  {'PROCESS':<12}{'STATE':<10}{'PID':>8}{'UPTIME':>10}{'MEMORY':>10}"] if found["processes"] else []
    for row in found["processes"]:
        memory, uptime = f"{row['memory_bytes'] / 1e6:.0f} MB", _span(row["uptime_s"])
        lines.append(f"  {row['name']:<12}{row['state'].lower():<10}{row['pid'] or '-':>8}{uptime:>10}{memory:>10}")
    for title, rows in (("SERVER", found["servers"]), ("GATEWAY", found["gateways"])):
        lines += ["", f"  {title:<34}{'STATUS':<14}{'SEEN':>8}"] if rows else []
        for row in rows:
            seen = "never" if row["seen_ago_s"] is None else f"{_span(row['seen_ago_s'])} ago"
            extra = f"  {row['availability']}" if row["availability"] not in (None, "active") else ""
            lines.append(f"  {row['name']:<34}{row['status']:<14}{seen:>8}{extra}")
    lines += ["", f"  {'DEPLOYMENT':<34}{'STATE':<14}{'READY':>8}"] if found["deployments"] else []
    for row in found["deployments"]:
        ready = f"{row['ready']}/{row['desired']}"
        lines.append(f"  {row['name']:<34}{row['state']:<14}{ready:>8}  {row['reason']}".rstrip())
    lines += ["", *(f"  ! {problem}" for problem in found["problems"])] if found["problems"] else []
    return "\n".join(lines)


def _span(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h" if whole < 172_800 else f"{whole // 86_400} d"
