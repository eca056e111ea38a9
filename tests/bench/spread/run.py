"""One model version to eight servers, each at the end of a cable of 50 MB/s: from the master alone, and with peers.

    python -m tests.bench.spread.run [--servers 8] [--megabytes 500] [--link 50]

Real processes: an installation, and agents in network namespaces joined by a bridge, their files on a disk of their own
(tmpfs). The cables are `tc tbf` in both directions, the master's too. "The master alone" is the same agents with the
servers' ports of the bridge isolated from each other. A version is pinned to all servers; the clock stops when the
last one says that it has it whole. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import sqlite3
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.home import Home
from tests.e2e.stack import SOURCE, Stack
from tests.waiting import wait_for

NETWORK = "10.214.0"


@dataclass
class Place:
    """A server at the end of a cable."""

    number: int
    folder: Path

    @property
    def netns(self) -> str:
        return f"sb{self.number}"

    @property
    def port(self) -> str:
        return f"sbp{self.number}"


def run(*arguments: str, **options: Any) -> None:
    subprocess.run(arguments, check=True, capture_output=True, **options)


def shape(netns: str | None, device: str, megabytes_s: int) -> None:
    """At most that many MB/s out of a device."""
    inside = ["ip", "netns", "exec", netns] if netns else []
    run(*inside, "ip", "link", "set", device, "mtu", "9000")  # fewer packets: one machine forwards those of nine
    rate = f"{megabytes_s * 8}mbit"
    run(*inside, "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", "256kb", "latency", "100ms")


@contextmanager
def network(places: list[Place], megabytes_s: int) -> Iterator[None]:
    """A switch with a cable to each place, and one to here (10.214.0.1)."""
    names = ["sbsw", *(place.netns for place in places)]
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    before = control.read_text()
    control.write_text("cubic")  # the kernel's own default, which namespaces take over; bbr's timers cost much here
    try:
        for name in names:
            run("ip", "netns", "add", name)
        run("ip", "-n", "sbsw", "link", "add", "br0", "type", "bridge")
        for table in ("iptables", "ip6tables", "arptables"):  # a switch has no firewall; with Docker here it would
            setting = f"/proc/sys/net/bridge/bridge-nf-call-{table}"
            run("ip", "netns", "exec", "sbsw", "sh", "-c", f"[ ! -e {setting} ] || echo 0 > {setting}")
        run("ip", "-n", "sbsw", "link", "set", "br0", "up")
        run("ip", "link", "add", "sbmaster", "type", "veth", "peer", "name", "sbp0", "netns", "sbsw")
        run("ip", "address", "add", f"{NETWORK}.1/24", "dev", "sbmaster")
        run("ip", "link", "set", "sbmaster", "up")
        shape(None, "sbmaster", megabytes_s)
        plug("sbp0", megabytes_s)
        for place in places:
            run(
                "ip",
                "-n",
                "sbsw",
                "link",
                "add",
                place.port,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                place.netns,
            )
            run("ip", "-n", place.netns, "address", "add", f"{NETWORK}.{place.number + 10}/24", "dev", "eth0")
            run("ip", "-n", place.netns, "link", "set", "eth0", "up")
            run("ip", "-n", place.netns, "link", "set", "lo", "up")
            shape(place.netns, "eth0", megabytes_s)
            plug(place.port, megabytes_s)
        yield
    finally:
        control.write_text(before)
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", "sbmaster"], capture_output=True, check=False)


def plug(port: str, megabytes_s: int) -> None:
    run("ip", "-n", "sbsw", "link", "set", port, "master", "br0")
    run("ip", "-n", "sbsw", "link", "set", port, "up")
    shape("sbsw", port, megabytes_s)


def isolate(places: list[Place], isolated: bool) -> None:
    """Whether the servers reach the master only."""
    for place in places:
        state = "on" if isolated else "off"
        run("ip", "netns", "exec", "sbsw", "bridge", "link", "set", "dev", place.port, "isolated", state)


def write_weights(path: Path, size_bytes: int) -> None:
    """A safetensors file of random bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _ in range(size_bytes >> 20):
            file.write(secrets.token_bytes(1 << 20))
        file.write(secrets.token_bytes(size_bytes & 0xFFFFF))


def start_agent(stack: Stack, place: Place) -> subprocess.Popen[bytes]:
    token = stack.post("/join-tokens/", {"role": "agent"})["token"]
    place.folder.mkdir(parents=True)
    (place.folder / "config.json").write_text('{"docker": false}')  # asking a daemon for containers is not measured
    agent = ["ip", "netns", "exec", place.netns, str(SOURCE / "stokehold"), "agent"]
    joining = ["--home", str(place.folder), "--master", f"https://{NETWORK}.1:{stack.ports[2]}", "--token", token]
    subprocess.run(
        [*agent, "join", *joining, "--name", place.netns], check=True, env=stack.environment(), capture_output=True
    )
    log = (place.folder / "log").open("wb")
    running = [*agent, "run", "--home", str(place.folder)]
    return subprocess.Popen(running, env=stack.environment(), stderr=log, stdin=subprocess.DEVNULL)


def spread(stack: Stack, version: int, digest: str, count: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds until all servers have it, and what each says of it."""
    began = time.monotonic()
    stack.post("/pins/", {"version": version})

    def there() -> list[dict[str, Any]]:
        models = [model for cache in told(stack) for model in cache.get("models", ())]
        whole = [model for model in models if model["digest"] == digest and model["progress"] == 1.0]
        return whole if len(whole) == count else []

    while not (whole := there()):
        assert time.monotonic() - began < 1200, "not all servers have it"
        time.sleep(0.2)
    return time.monotonic() - began, whole


def told(stack: Stack) -> list[dict[str, Any]]:
    """What the servers last said of their files, past the API: that has a cost of its own."""
    question = (
        "SELECT state.cache FROM fleet_serverstate AS state JOIN fleet_server AS server ON server.id = state.server_id"
        " WHERE server.name LIKE 'sb%' AND state.cache IS NOT NULL"
    )
    with closing(sqlite3.connect(f"file:{Home(stack.home).database}?mode=ro", uri=True, timeout=10)) as connection:
        return [json.loads(cache) for (cache,) in connection.execute(question)]


def cpu_s(processes: list[subprocess.Popen[bytes]]) -> float:
    import psutil

    return sum(sum(psutil.Process(one.pid).cpu_times()[:2]) for one in processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--link", type=int, default=50, help="MB/s")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stk-spread-", dir="/var/tmp"))
    disk = folder / "servers"  # one of their own: on the master's they would link its files
    disk.mkdir()
    places = [Place(number, disk / f"agent-{number}") for number in range(1, asked.servers + 1)]
    stack = Stack(folder / "home")
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        run("mount", "-t", "tmpfs", "tmpfs", str(disk))
        ending.callback(run, "umount", "-l", str(disk))
        ending.enter_context(network(places, asked.link))
        stack.up("--no-demo", "--listen", "0.0.0.0")
        ending.callback(stack.stop)
        for place in places:
            processes.append(start_agent(stack, place))
            ending.callback(processes[-1].wait)
            ending.callback(processes[-1].terminate)
        figures = {}
        for name, isolated in (("the master alone", True), ("with peers", False)):
            weights = folder / "source" / name.replace(" ", "-") / "model.safetensors"
            weights.parent.mkdir(parents=True)
            write_weights(weights, asked.megabytes * 1_000_000)
            row = stack.post("/model-versions/", {"model": "spread", "path": str(weights.parent), "link": True})
            row = wait_for(lambda pk=row["id"]: ready(stack, pk), within_s=300, what="imported")
            isolate(places, isolated)
            before = cpu_s(processes)
            took_s, whole = spread(stack, row["id"], row["digest"], asked.servers)
            figures[name] = took_s
            master_mb = sum(model["from_master_bytes"] for model in whole) / 1e6
            peers_mb = sum(model["from_peers_bytes"] for model in whole) / 1e6
            total = asked.servers * asked.megabytes / took_s
            print(
                f"{name:18} {took_s:7.1f} s  {total:6.0f} MB/s together  from the master {master_mb:6.0f} MB, "
                f"from peers {peers_mb:6.0f} MB  agents' CPU {cpu_s(processes) - before:5.1f} s",
                flush=True,
            )
        print(f"ratio {figures['the master alone'] / figures['with peers']:.2f} (must be at least 4)")


def ready(stack: Stack, version: int) -> dict[str, Any] | None:
    row = stack.get(f"/model-versions/{version}/")
    assert row["state"] != "failed", row["error"]
    return row if row["state"] == "ready" else None


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
