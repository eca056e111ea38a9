"""Two gateway processes with their counters in Redis (Valkey) against one: requests a second, and CPU a request.

python tests/bench/gateway/scale.py --bench DIR/bench.py [--rounds 3] [--secs 4] [--free]

Without `--free` all gateway processes share one core, so that CPU a request tells what a second process costs; with it
they are free to use all cores, which only means something where there are enough of them (four or more).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.bench.gateway import run  # noqa: E402
from tests.bench.gateway.endure import load_driver  # noqa: E402
from tests.bench.gateway.peers import mock_engine, wait_for  # noqa: E402
from tests.ports import free_port  # noqa: E402
from tests.valkey import running_valkey  # noqa: E402

_WAYS: dict[str, tuple[int, bool]] = {
    "one process": (1, False),
    "one process, counters in Redis": (1, True),
    "two processes, counters in Redis": (2, True),
}


class Running:
    """One way of running the gateway, and the Redis it counts in."""

    def __init__(self, options: Any, folder: Path, processes: int, redis: Any) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "gateway", "run", "--home", str(run.make_home(folder).path)]
        command += ["--port", str(self.port), "--processes", str(processes)]
        if redis is not None:
            command += ["--redis", redis.url]
        if not options.free:
            command = ["taskset", "-c", "1", *command]
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self.log)
        wait_for(f"http://127.0.0.1:{self.port}/readyz", self.process)
        time.sleep(2)  # the other child
        self.redis = redis
        self.target = SimpleNamespace(target=f"http://127.0.0.1:{self.port}", key=run.KEY, pid=self.process.pid)

    def round(self, driver: Any, secs: float) -> tuple[float, float, float]:
        """(requests/s, CPU ms a request of the gateway, of Redis)"""
        own = driver.tree(self.process.pid)
        redis = [] if self.redis is None else [self.redis.process.pid]
        before = driver.cpu(own), driver.cpu(redis)
        told = driver.lg(self.target, driver.body("mock", False), 64, secs)
        if told["errs"] or told["bad"]:
            raise SystemExit(f"errors: {told}")
        after = driver.cpu(own), driver.cpu(redis)
        each = [1000 * (end - start) / told["ok"] for start, end in zip(before, after, strict=True)]
        return told["rps"], each[0], each[1]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(40)
        self.log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", type=Path, required=True, help="bench.py of the gateway bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=float, default=4.0)
    parser.add_argument("--free", action="store_true", help="do not pin the gateway to one core")
    options = parser.parse_args()
    driver = load_driver(options.bench)
    with tempfile.TemporaryDirectory() as name, mock_engine(run.UPSTREAM_PORT), running_valkey(Path(name)) as redis:
        for way, (processes, is_shared) in _WAYS.items():
            folder = Path(name) / way.replace(" ", "-")
            folder.mkdir()
            running = Running(options, folder, processes, redis if is_shared else None)
            try:
                running.round(driver, 1.0)
                rounds = [running.round(driver, options.secs) for _ in range(options.rounds)]
            finally:
                running.stop()
            rps, own, of_redis = (statistics.median(values) for values in zip(*rounds, strict=True))
            print(f"{way:34} {rps:8.0f} requests/s, {own:.3f} ms CPU a request, {of_redis:.3f} ms of Redis", flush=True)


if __name__ == "__main__":
    main()
