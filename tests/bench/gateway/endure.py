"""Many streams at once, and memory over many requests.

python tests/bench/gateway/endure.py --bench DIR/bench.py [--streams 2000] [--requests 1000000]
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.bench.gateway import run  # noqa: E402
from tests.bench.gateway.peers import mock_engine, wait_for  # noqa: E402
from tests.ports import free_port  # noqa: E402


def load_driver(path: Path) -> ModuleType:
    """`bench.py` as a module: its load generator and its engine are built on import."""
    spec = importlib.util.spec_from_file_location("gateway_bench", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def streams(driver: Any, target: Any, count: int) -> str:
    """`count` streams of five chunks, a second apart, all at once."""
    before = driver.rss(driver.tree(target.pid))
    body = driver.body("mock", True, 5, 1000)
    load = driver.lg(target, body, count, 40, 1, 0, 5, popen=True)
    time.sleep(3.5)
    during, active = driver.rss(driver.tree(target.pid)), driver.upstats(run.UPSTREAM_PORT)["active"]
    told = driver.json.loads(load.communicate(timeout=60)[0])
    each = (during - before) * 1024 / count
    return f"{active} streams open, {told['ok']} whole, {told['bad']} bad, {told['errs']} errors, {each:.1f} KiB each"


def slope(driver: Any, target: Any, requests: int) -> str:
    """Memory by requests, a straight line through the second half of the looks."""
    looks: list[tuple[int, float]] = []
    done, body = 0, driver.body("mock", False)
    while done < requests:
        told = driver.lg(target, body, 32, 10)
        done += told["ok"]
        if told["errs"] or told["bad"]:
            raise SystemExit(f"errors: {told}")
        looks.append((done, driver.rss(driver.tree(target.pid))))
        print(f"{done:>10,} requests: {looks[-1][1]:.1f} MiB", flush=True)
    half = looks[len(looks) // 2 :]
    mean_x = sum(x for x, _ in half) / len(half)
    mean_y = sum(y for _, y in half) / len(half)
    spread = sum((x - mean_x) ** 2 for x, _ in half) or 1
    rise = sum((x - mean_x) * (y - mean_y) for x, y in half) / spread
    return f"{done:,} requests: {rise * 1024 * 1024:.2f} bytes a request over the second half"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", type=Path, required=True, help="bench.py of the gateway bench")
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    driver, port = load_driver(options.bench), free_port()
    with tempfile.TemporaryDirectory() as name, mock_engine(run.UPSTREAM_PORT):
        home = run.make_home(Path(name))
        command = [sys.executable, "-m", "gateway", "run", "--home", str(home.path), "--port", str(port)]
        with (Path(name) / "log").open("wb") as log:
            process = subprocess.Popen(["taskset", "-c", "1", *command], cwd=ROOT, stderr=log)
            try:
                wait_for(f"http://127.0.0.1:{port}/readyz", process)
                target = SimpleNamespace(target=f"http://127.0.0.1:{port}", key=run.KEY, pid=process.pid)
                driver.lg(target, driver.body("mock", False), 32, 1)
                print(streams(driver, target, options.streams))
                print(slope(driver, target, options.requests))
            finally:
                process.terminate()
                process.wait(40)


if __name__ == "__main__":
    main()
