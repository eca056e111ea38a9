"""Model files through the nginx of `ops/nginx/link.conf`: a real one, before a real master, asked by our own agent."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.utils import timezone
from pytest_django import Settings

from agent.errors import FetchFailed
from agent.home import AgentHome
from agent.join import join
from agent.store import Store
from agent.store.sources import Network
from config.home import SOURCE_DIR
from fleet.join import create_join_token
from models_registry import services
from models_registry.versions import store
from tests.master import Master, test_database_url
from tests.ports import free_port
from tests.waiting import wait_for
from wire.certs import load_signing_key
from wire.manifest import Manifest
from wire.pieces import PIECE_BYTES
from wire.tokens import make_node_token

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@contextmanager
def nginx(folder: Path, master: Master, port: int) -> Iterator[Path]:
    """The file that we hand out, with this test's addresses; its access log."""
    text = (SOURCE_DIR / "ops" / "nginx" / "link.conf").read_text()
    for ours, theirs in (
        ("127.0.0.1:8000", f"127.0.0.1:{master.port}"),
        ("listen 8443", f"listen 127.0.0.1:{port}"),
        ("/var/lib/stokehold/ca", str(master.home.ca)),
        ("/var/lib/stokehold/models", str(store().root.absolute())),
    ):
        assert ours in text
        text = text.replace(ours, theirs)
    log = folder / "access.log"
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"user root; daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log {log}; {temporary}\n{text}\n}}\n"
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", str(config), "-p", str(folder)], stderr=subprocess.PIPE)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.django_db(transaction=True)
def test_blobs_leave_by_nginx_and_only_for_servers(tmp_path: Path, settings: Settings) -> None:
    port = free_port()
    link_url = f"https://127.0.0.1:{port}"
    master = Master(tmp_path / "home", test_database_url())
    master.environment |= {
        "DJANGO_SETTINGS_MODULE": "config.settings.production",
        "STOKEHOLD_BLOB_ACCEL_PREFIX": "/_blobs",
        "STOKEHOLD_LINK_URL": link_url,
    }
    settings.MODEL_STORE_DIR, settings.CA_DIR = master.home.models, master.home.ca
    data = os.urandom(2 * PIECE_BYTES + 5)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.dat").write_bytes(data)
    version = services.import_path("m", tmp_path / "m", now=timezone.now())
    master.start()
    (tmp_path / "nginx").mkdir()
    try:
        with nginx(tmp_path / "nginx", master, port) as log, tempfile.TemporaryDirectory(dir="/dev/shm") as other_disk:
            wait_for(lambda: (tmp_path / "nginx" / "pid").exists(), within_s=10, what="nginx")
            token = create_join_token(role="agent", now=timezone.now())
            asyncio.run(fetch(Path(other_disk), link_url, token, services.manifest_of(version), data))
            lines = log.read_text().splitlines()
    finally:
        master.stop()
    assert sum(f" 206 {PIECE_BYTES} " in line for line in lines) == 2, lines


async def fetch(folder: Path, link_url: str, token: str, manifest: Manifest, data: bytes) -> None:
    home = AgentHome(folder / "agent")
    home.create()
    await join(home, master_url=link_url, token_text=token, name="one", addresses=("127.0.0.1",))
    identity = home.identity()
    assert identity is not None
    key = load_signing_key(identity.signing_key_pem)
    network = Network(
        identity, lambda: make_node_token(key, identity.node_id, timezone.now().timestamp()), home.relay_pem
    )
    stranger = Network(identity, lambda: "nobody", home.relay_pem)
    try:
        with pytest.raises(FetchFailed, match="answered 401"):
            async for _ in stranger.master.read(manifest.files[0], 0, memoryview(bytearray(5))):
                pass
        checkout = await Store(home.path, network).fetch(manifest, lambda share: None)
        assert (checkout / "weights.dat").read_bytes() == data
    finally:
        await network.close()
        await stranger.close()
