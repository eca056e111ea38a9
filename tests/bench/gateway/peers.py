"""What the gateway is measured beside: nginx, vllm-router and LiteLLM, each before the same mock engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

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
_LITELLM = """
model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
general_settings: {{master_key: "{key}"}}
litellm_settings: {{telemetry: false}}
"""


def wait_for(url: str, process: subprocess.Popen[bytes], *, within_s: float = 15) -> None:
    """Until anything answers there."""
    deadline = time.monotonic() + within_s
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


@contextmanager
def running(command: list[str], url: str, *, within_s: float = 15, **environment: str) -> Iterator[int]:
    """Process id of a peer that answers."""
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(url, process, within_s=within_s)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def mock_engine(port: int) -> Iterator[None]:
    """The bench's engine, for as long as peers look at it; `bench.py` has built it."""
    program = Path(os.environ.get("BENCH_BIN") or Path(tempfile.gettempdir()) / "stokehold-bench") / "upstream"
    with running([str(program), str(port)], f"http://127.0.0.1:{port}/stats"):
        yield


@contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[tuple[int, int] | None]:
    """(port, process id) of a plain reverse proxy; None where it is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield None
        return
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, upstream=upstream))
    with running([program, "-c", str(config)], f"http://127.0.0.1:{port}/stats") as pid:
        yield port, pid


@contextmanager
def vllm_router(bin_folder: Path, upstream: int) -> Iterator[tuple[int, int] | None]:
    """The same of vllm-router with one worker."""
    program = bin_folder / "vllm-router"
    if not program.exists():
        yield None
        return
    port, metrics = free_port(), free_port()
    command = [str(program), "--worker-urls", f"http://127.0.0.1:{upstream}", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(metrics)]
    with running(command, f"http://127.0.0.1:{port}/health") as pid:
        yield port, pid


@contextmanager
def litellm(bin_folder: Path, folder: Path, upstream: int, key: str) -> Iterator[tuple[int, int] | None]:
    """The same of LiteLLM's proxy with one worker: its key check on, no database, no log."""
    program = bin_folder / "litellm"
    if not program.exists():
        yield None
        return
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(_LITELLM.format(upstream=upstream, key=key))
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with running(command, f"http://127.0.0.1:{port}/health/liveliness", within_s=90, **quiet) as pid:
        yield port, pid
