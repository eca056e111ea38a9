"""The downloader beside `hf download`, `aria2c -x16` and `curl` with `sha256sum`, over loopback, in one run.

python tests/bench/download/run.py [--gb 1] [--shards 4] [--rounds 2]

First from a hub with 40 ms of latency and 30 MB/s a connection (our fake Hub, in a process of its own), then from
nginx without any limit. Prints wall time, CPU a GB with the hash, peak memory, and the most disk above the files' size.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.fakes.hub import FakeHub, HubFile, running_hub  # noqa: E402
from tests.ports import free_port  # noqa: E402

LATENCY_S, RATE = 0.04, 30e6


@dataclass
class Figures:
    wall_s: float
    cpu_s: float
    rss_mb: float
    extra_bytes: int


def make_files(folder: Path, total: int, shards: int) -> dict[str, str]:
    """Random files below `folder`; their sha256 by name."""
    hashes = {}
    for number in range(shards):
        name, digest = f"model-{number + 1:05}-of-{shards:05}.safetensors", hashlib.sha256()
        with (folder / name).open("wb") as file:
            for _ in range(total // shards >> 20):
                block = os.urandom(1 << 20)
                digest.update(block)
                file.write(block)
        hashes[name] = digest.hexdigest()
    return hashes


def serve(folder: str, port: str, limited: str) -> None:
    """The process of the hub."""

    async def run() -> None:
        hub = FakeHub()
        if limited == "1":
            hub.latency_s, hub.bytes_per_second = LATENCY_S, RATE
        files = {path.name: HubFile(path, lfs=True) for path in sorted(Path(folder).glob("*.safetensors"))}
        hub.repo("org/model", {**files, "config.json": HubFile(b"{}")})
        async with running_hub(hub, port=int(port)):
            print("ready", flush=True)
            await asyncio.sleep(1e6)

    asyncio.run(run())


def fetch(base: str, folder: str, *told: str) -> None:
    """The process of our downloader. `told`: name=size=sha256."""
    from models_registry.download.downloader import running
    from models_registry.download.remote import Remote
    from models_registry.download.transfer import Wanted

    async def run() -> None:
        wanted = []
        for one in told:
            name, size, sha256 = one.split("=")
            remote = Remote(f"{base}/{name}", has_hash=True)
            wanted.append(Wanted(Path(folder) / name, int(size), remote, sha256))
        async with running() as downloader:
            await downloader.fetch(wanted)

    asyncio.run(run())


@contextmanager
def hub(folder: Path, *, limited: bool) -> Iterator[str]:
    """Address of files of a hub."""
    port = free_port()
    command = [sys.executable, __file__, "--serve", str(folder), str(port), "1" if limited else "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def nginx(folder: Path, work: Path) -> Iterator[str]:
    port = free_port()
    (work / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {work}/pid; error_log stderr crit; events {{}}\n"
        f"http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    folder.chmod(0o755)
    work.chmod(0o755)
    process = subprocess.Popen(["nginx", "-p", str(work), "-c", str(work / "nginx.conf")], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def measured(command: list[str], target: Path, size: int, env: dict[str, str] | None = None) -> Figures:
    """Run it; the disk is looked at ten times a second."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    most, ended = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(0.1):
            used = sum(path.stat().st_blocks * 512 for path in target.rglob("*") if path.is_file())
            most = max(most, used)

    watcher = threading.Thread(target=look)
    watcher.start()
    began = time.monotonic()
    log = target.parent / "command.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - began
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"{command[:3]} failed:\n{log.read_text()[-2000:]}")
    return Figures(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, max(0, most - size))


def ways(
    base: str, target: Path, hashes: dict[str, str], sizes: dict[str, int], endpoint: str
) -> dict[str, Callable[[], Figures]]:
    """What is measured, by name."""
    total = sum(sizes.values())
    told = [f"{name}={sizes[name]}={sha256}" for name, sha256 in hashes.items()]
    found: dict[str, Callable[[], Figures]] = {
        "stokehold": lambda: measured([sys.executable, __file__, "--fetch", base, str(target), *told], target, total)
    }
    if endpoint:
        hf = [str(Path(sys.executable).with_name("hf")), "download", "org/model", "--local-dir", str(target)]
        env = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(target.parent / "hf")}
        found["hf download"] = lambda: measured(hf, target, total, env)
    if shutil.which("aria2c"):
        listed = target.parent / "aria.txt"
        listed.write_text("".join(f"{base}/{name}\n  checksum=sha-256={sha}\n" for name, sha in hashes.items()))
        aria = [
            "aria2c",
            "-q",
            "-x16",
            "-s16",
            "-j16",
            "-k1M",
            "--file-allocation=falloc",
            "-i",
            str(listed),
            "-d",
            str(target),
        ]
        found["aria2c -x16"] = lambda: measured(aria, target, total)
    lines = " && ".join(f"curl -sfL -o {target}/{name} {base}/{name}" for name in hashes)
    curl = ["sh", "-c", f"{lines} && sha256sum {target}/*.safetensors"]
    found["curl, sha256sum"] = lambda: measured(curl, target, total)
    return found


def table(title: str, found: dict[str, Callable[[], Figures]], rounds: int, total: int) -> None:
    print(f"{title}, {total / 1e9:.2f} GB")
    figures: dict[str, list[Figures]] = {name: [] for name in found}
    for _ in range(rounds):  # in turn: the machine changes its mind
        for name, run in found.items():
            figures[name].append(run())
    ours = statistics.median(one.wall_s for one in figures["stokehold"])
    for name, runs in figures.items():
        wall, cpu = statistics.median(r.wall_s for r in runs), statistics.median(r.cpu_s for r in runs)
        more = (
            f"{max(r.rss_mb for r in runs):6.0f} MB, {100 * max(r.extra_bytes for r in runs) / total:.2f} % more disk"
        )
        print(
            f"  {name:16} {wall:7.2f} s ({wall / ours:.2f} x ours), CPU {cpu / (total / 1e9):5.2f} s/GB, {more}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        files, target = work / "files", work / "target"
        files.mkdir()
        hashes = make_files(files, int(options.gb * (1 << 30)), options.shards)
        sizes = {one: (files / one).stat().st_size for one in hashes}
        with hub(files, limited=True) as endpoint:
            found = ways(f"{endpoint}/org/model/resolve/main", target, hashes, sizes, endpoint)
            found.pop("curl, sha256sum")  # one connection: 30 MB/s
            table("40 ms of latency, 30 MB/s a connection", found, options.rounds, sum(sizes.values()))
        with nginx(files, work) as base:
            table("nginx, no limit", ways(base, target, hashes, sizes, ""), options.rounds, sum(sizes.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    elif sys.argv[1:2] == ["--fetch"]:
        fetch(*sys.argv[2:])
    else:
        main()
