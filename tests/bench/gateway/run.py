"""Run a gateway-bench driver against this gateway and, where nginx is installed, a plain nginx proxy, side by side.

python tests/bench/gateway/run.py --bench DIR/bench.py [--rounds 3] [--secs 1.5] [--json OUT]
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from gateway.home import Home, StoredState, own_host_id  # noqa: E402
from tests.ports import free_port  # noqa: E402
from wire import certs, join  # noqa: E402
from wire.feed import FeedKey, FeedProject, FeedRoute, FeedSnapshot, Target  # noqa: E402
from wire.messages import JoinReply  # noqa: E402

UPSTREAM_PORT = 8101
KEY = "sk-stk-benchkey-" + "b" * 43
PEPPER = "00" * 32
_NGINX = """
worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    location / {{ proxy_pass http://engine; }}
  }}
}}
"""
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
    )
    snapshot = FeedSnapshot(
        pepper=PEPPER,
        projects=(FeedProject(id="p", name="bench", active=True),),
        keys=(key,),
        routes=(FeedRoute(id="mock", created=1, targets=(target,)),),
    )
    home.save_state(StoredState(saved_at=time.time(), snapshot=snapshot))
    return home


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"{url} does not answer")


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


def run_nginx(options: argparse.Namespace, folder: Path) -> dict[str, Any] | None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        return None
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, upstream=UPSTREAM_PORT))
    process = subprocess.Popen([nginx, "-c", str(config)], env={**os.environ}, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/stats", process)
        return measure(options, port, process.pid)
    finally:
        process.terminate()
        process.wait(10)


def show(ours: dict[str, Any], nginx: dict[str, Any] | None) -> None:
    print(f"{'':36}{'gateway':>12}{'nginx':>12}{'ratio':>8}{'direct':>12}")
    direct = ours.get("direct", {})
    for name, label in _FIGURES:
        theirs = nginx[name] if nginx else float("nan")
        ratio = ours[name] / theirs if theirs else float("nan")
        print(f"{label:36}{ours[name]:12.3f}{theirs:12.3f}{ratio:8.2f}{direct.get(name, float('nan')):12.3f}")
    print(f"memory MiB: {ours['rss_mb']:.1f}; KiB a stream: {ours['idle']['kb_per_stream']:.1f}")
    print(f"cancel ms: {ours['disconnect_ms']}; errors {ours['errs']}, bad answers {ours['bad']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", type=Path, required=True, help="bench.py of the gateway bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=float, default=1.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "nginx").mkdir()
        (folder / "gateway").mkdir()
        nginx = run_nginx(options, folder / "nginx")
        ours = run_gateway(options, folder / "gateway")
    show(ours, nginx)
    if options.json:
        options.json.write_text(json.dumps({"gateway": ours, "nginx": nginx}, indent=1))


if __name__ == "__main__":
    main()
