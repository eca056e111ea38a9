"""Run a gateway-bench driver against this gateway and, where they are installed, nginx, vllm-router and LiteLLM.

python tests/bench/gateway/run.py --bench DIR/bench.py [--peers VENV/bin] [--rounds 3] [--secs 1.5] [--json OUT]
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import hmac
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from gateway.home import Home, StoredState, own_host_id  # noqa: E402
from tests.bench.gateway import peers  # noqa: E402
from tests.bench.gateway.peers import wait_for  # noqa: E402
from tests.ports import free_port  # noqa: E402
from wire import certs, join  # noqa: E402
from wire.feed import FeedKey, FeedProject, FeedRoute, FeedSnapshot, Limits, Price, Target  # noqa: E402
from wire.messages import JoinReply  # noqa: E402

UPSTREAM_PORT = 8101
KEY = "sk-stk-benchkey-" + "b" * 43
PEPPER = "00" * 32
# Never reached, but counted for each request: what keys and projects usually have.
KEY_LIMITS = Limits(requests_per_minute=10**9, tokens_per_minute=10**12, parallel_requests=10**6)
PROJECT_LIMITS = Limits(tokens_per_day=10**15, cost_per_month=10**18)
_FIGURES = (
    ("ns32_rps", "requests/s, 32 at once"),
    ("ns32_cpu_ms", "CPU ms a request, 32 at once"),
    ("ns256_rps", "requests/s, 256 at once"),
    ("ns1_p50", "p50 µs, one at a time"),
    ("st32_us_chunk", "CPU µs a chunk, streams"),
    ("paced_clat_p50", "p50 µs of a chunk, paced streams"),
)


def make_home(folder: Path) -> Home:
    """A home that has joined a master that is away, with a state that routes `mock` to the mock engine."""
    home = Home(folder)
    now = dt.datetime.now(dt.UTC)
    ca_key, ca_pem = certs.make_ca("bench", now)
    keys = join.make_keys()
    certificate = certs.issue(
        ca_key, ca_pem, keys.tls_public_pem, common_name="bench", role="gateway", names=("localhost",), now=now
    )
    reply = JoinReply(
        node_id="bench",
        name="bench",
        certificate_pem=certificate,
        ca_pem=ca_pem,
        signing_public_key_pem=keys.signing_public_pem,
    )
    home.save_identity(join.make_identity(keys, reply, role="gateway", master_url="https://127.0.0.1:9"))
    target = Target(
        instance_id="mock-1",
        server_id="s",
        host_id=own_host_id(),
        port=UPSTREAM_PORT,
        relay_addresses=(),
        relay_port=0,
        engine_model="mock",
    )
    key = FeedKey(
        id="benchkey",
        secret_hash=hmac.new(bytes.fromhex(PEPPER), KEY.encode(), hashlib.sha256).hexdigest(),
        project_id="p",
        name="bench",
        active=True,
        expires_at=None,
        models=None,
        limits=KEY_LIMITS,
    )
    snapshot = FeedSnapshot(
        pepper=PEPPER,
        projects=(FeedProject(id="p", name="bench", active=True, limits=PROJECT_LIMITS),),
        keys=(key,),
        routes=(FeedRoute(id="mock", created=1, targets=(target,), price=Price(prompt=1, completion=2)),),
    )
    home.save_state(StoredState(saved_at=time.time(), snapshot=snapshot))
    return home


def measure(options: argparse.Namespace, port: int, pid: int) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, str(options.bench), "--target", f"http://127.0.0.1:{port}", "--key", KEY]
        command += ["--model", "mock", "--pid", str(pid), "--rounds", str(options.rounds), "--secs", str(options.secs)]
        subprocess.run([*command, "--json", out.name], check=True, stdout=subprocess.DEVNULL)
        figures: dict[str, Any] = json.loads(Path(out.name).read_text())
        return figures


def run_gateway(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    port = free_port()
    command = [sys.executable, "-m", "gateway", "run", "--home", str(make_home(folder).path), "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/readyz", process)
            return measure(options, port, process.pid)
        finally:
            process.terminate()
            process.wait(40)


def show(found: dict[str, dict[str, Any]]) -> None:
    """Each figure of each, and direct to the engine."""
    ours = found["gateway"]
    columns = {**found, "direct": ours.get("direct", {})}
    print(" " * 36 + "".join(f"{name:>14}" for name in columns))
    for name, label in _FIGURES:
        cells = [figures.get(name) for figures in columns.values()]
        print(f"{label:36}" + "".join(f"{cell:14.3f}" if cell is not None else f"{'-':>14}" for cell in cells))
    for name, figures in found.items():
        if name != "gateway":
            print(f"CPU a request, gateway / {name}: {ours['ns32_cpu_ms'] / figures['ns32_cpu_ms']:.4f}")
    for name, figures in found.items():
        told = f"{figures['rss_mb']:.0f} MiB, {figures['idle']['kb_per_stream']:.1f} KiB a stream"
        print(f"{name}: {told}, cancel ms {figures['disconnect_ms']}, errors {figures['errs']}, bad {figures['bad']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", type=Path, required=True, help="bench.py of the gateway bench")
    parser.add_argument("--peers", type=Path, default=Path("/nowhere"), help="bin folder with litellm and vllm-router")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=float, default=1.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {"gateway": run_gateway(options, folder)}
        others = {
            "nginx": peers.nginx(folder, UPSTREAM_PORT),
            "vllm-router": peers.vllm_router(options.peers, UPSTREAM_PORT),
            "LiteLLM": peers.litellm(options.peers, folder, UPSTREAM_PORT, KEY),
        }
        with peers.mock_engine(UPSTREAM_PORT):
            for other, peer in others.items():
                with peer as running:
                    if running is not None:
                        found[other] = measure(options, *running)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
