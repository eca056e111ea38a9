"""What the master's disk lost comes back from a server, through its relay's real TLS."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.utils import timezone
from pytest_django import Settings

from agent.store.shelf import Shelf
from fleet.models import Server as ServerRow
from fleet.models import ServerState
from fleet.services import record_hello
from models_registry import services
from models_registry.location_models import CopyState, VersionCopy
from models_registry.locations.repair import repair
from models_registry.locations.scrub import bad_files
from models_registry.locations.servers import from_servers
from models_registry.models import ModelVersion
from models_registry.versions import store
from tests.agent.master import TestMaster
from tests.agent.store.test_swarm import Server, up
from tests.factories import make_facts
from tests.fleet.nodes import make_hello
from tests.models_registry.test_blobs import make_node
from wire import certs
from wire.pieces import PIECE_BYTES

pytestmark = pytest.mark.django_db(transaction=True)
CONTENT = os.urandom(2 * PIECE_BYTES + 9)


@contextmanager
def server_with(
    folder: Path, settings: Settings, version: ModelVersion, content: bytes, digest: str = ""
) -> Iterator[None]:
    """A server whose store has the version's file, and a master whose certificate its relay knows.

    `digest`: of what it has, where that is not all of the version.
    """
    row, _ = make_node(ServerRow, "holder")
    ready, done = threading.Event(), threading.Event()
    port = 0

    async def serve() -> None:
        nonlocal port
        (folder / "ca").mkdir()
        master = TestMaster(folder / "ca")
        keys = certs.make_tls_key()
        (folder / "ca" / "ca.pem").write_text(master.ca_pem)
        (folder / "ca" / "master.pem").write_text(master.issue(keys.public_pem, role="master"))
        (folder / "ca" / "master.key").write_text(keys.private_pem)
        server = Server(folder, master, row.pk)
        manifest = services.manifest_of(version)
        blob = Shelf(server.home.path).blob(manifest.files[0].sha256)
        blob.parent.mkdir(parents=True)
        blob.write_bytes(content)
        async with up(server):
            port = server.relay.port
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        settings.CA_DIR = folder / "ca"
        now = timezone.now()
        record_hello(row.pk, make_hello(facts=make_facts(addresses=("127.0.0.1",), relay_port=port)), now)
        model = {"digest": digest or version.digest, "model_name": str(version), "progress": 1.0, "problem": ""}
        ServerState.objects.filter(server=row).update(cache={"models": [model]}, cache_at=now)
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture
def version(tmp_path: Path) -> ModelVersion:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.dat").write_bytes(CONTENT)
    return services.import_path("m", tmp_path / "m", now=timezone.now())


@pytest.mark.parametrize("digest", ["", "f" * 64], ids=["all of it", "all but what can run code"])
def test_a_damaged_copy_is_mended_from_a_server(
    tmp_path: Path, settings: Settings, version: ModelVersion, digest: str
) -> None:
    blob = store().blob_path(version.manifest["files"][0]["sha256"])
    blob.chmod(0o644)
    blob.write_bytes(CONTENT[:-1] + b"?")
    copy = VersionCopy.objects.get(version=version)
    copy.bad = bad_files(copy)
    copy.state = CopyState.DAMAGED
    copy.save()
    with server_with(tmp_path, settings, version, CONTENT, digest):
        assert repair(copy) == []
    assert blob.read_bytes() == CONTENT
    copy.refresh_from_db()
    assert copy.state == CopyState.WHOLE


def test_a_server_whose_copy_is_wrong_too_mends_nothing(
    tmp_path: Path, settings: Settings, version: ModelVersion
) -> None:
    place = tmp_path / "place"
    file = services.manifest_of(version).files[0]
    with server_with(tmp_path, settings, version, CONTENT[::-1]):
        assert not from_servers(version, file, place)
    assert not place.exists()
