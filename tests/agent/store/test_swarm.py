"""Several servers that fetch from each other, through their relays' real TLS."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from agent.errors import FetchFailed
from agent.home import AgentHome
from agent.relay import Relay
from agent.store import Store, swarm
from agent.store.serve import BlobServer
from agent.store.sources import Network, PeerSource
from tests.agent.conftest import manifest_of
from tests.agent.master import TestMaster
from wire import certs
from wire.join import NodeIdentity
from wire.manifest import Manifest, ManifestFile
from wire.pieces import DOOR, PIECE_BYTES, Peer
from wire.tokens import make_node_token

pytestmark = pytest.mark.asyncio


def ignore(share: float) -> None:
    """No one looks at the progress."""


def identity_of(master: TestMaster, node_id: str, role: str = "agent") -> NodeIdentity:
    """A node that joined."""
    signing, tls = certs.make_signing_key(), certs.make_tls_key()
    master.node_keys[node_id] = signing.public_pem
    names = ("localhost", certs.relay_wildcard(node_id))
    return NodeIdentity(
        node_id=node_id,
        name=node_id,
        role=role,
        master_url=master.url,
        signing_key_pem=signing.private_pem,
        tls_key_pem=tls.private_pem,
        certificate_pem=master.issue(tls.public_pem, role=role, names=names),
        ca_pem=master.ca_pem,
        master_public_key_pem=master.signing.public_pem,
    )


class Server:
    """What of an agent has to do with model files."""

    def __init__(self, folder: Path, master: TestMaster, node_id: str) -> None:
        self.identity = identity_of(master, node_id)
        self.home = AgentHome(folder / node_id)
        self.home.create()
        key = certs.load_signing_key(self.identity.signing_key_pem)
        self.network = Network(self.identity, lambda: make_node_token(key, node_id, time.time()), self.home.relay_pem)
        self.store = Store(self.home.path, self.network)
        self.blobs = BlobServer(self.store)
        self.revoked: set[str] = set()
        self.relay = Relay(self.home, self.identity, lambda _: None, lambda: self.revoked, self.blobs.protocol)

    @property
    def peer(self) -> Peer:
        return Peer(server_id=self.identity.node_id, addresses=("127.0.0.1",), port=self.relay.port)

    async def fetch(self, manifest: Manifest) -> Path:
        return await self.store.fetch(manifest, ignore, "m:1")

    def came(self) -> tuple[int, int]:
        """(bytes from the master, from peers)."""
        (model,) = self.store.cached()
        return model.from_master_bytes, model.from_peers_bytes


@asynccontextmanager
async def up(server: Server) -> AsyncIterator[Server]:
    await server.relay.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.relay.close()
        await server.blobs.close()
        await server.network.close()


@pytest_asyncio.fixture
async def fleet(folder: Path, master: TestMaster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Server]]:
    """Four servers that the master names to each other."""
    monkeypatch.setattr(swarm, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(swarm, "FIND_EVERY_S", 0.2)
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(up(Server(folder, master, f"srv-{n}"))) for n in range(1, 5)]
        master.peers = tuple(server.peer for server in servers)
        yield servers


async def test_a_server_fetches_from_a_peer_what_the_peer_has(master: TestMaster, fleet: list[Server]) -> None:
    first, second, *_ = fleet
    data = os.urandom(5 * PIECE_BYTES + 1)
    manifest = manifest_of(master, {"m.gguf": data, "config.json": b"{}"})
    await first.fetch(manifest)
    master.blobs.clear()  # the master's own copy is gone, and its hashes are still known
    master.told_of = {file.sha256: data for file in manifest.files if file.path == "m.gguf"}
    assert ((await second.fetch(manifest)) / "m.gguf").read_bytes() == data
    assert second.came() == (0, len(data) + 2)


async def test_what_peers_have_of_a_file_is_handed_on_before_it_is_whole(
    master: TestMaster, fleet: list[Server]
) -> None:
    """Each piece leaves the master about once, however many servers want it."""
    data = os.urandom(12 * PIECE_BYTES)
    manifest = manifest_of(master, {"m.gguf": data})
    for server in fleet:  # slow enough for others to hear of a piece
        server.store.download_limit.bytes_per_second = 30 * PIECE_BYTES
    folders = await asyncio.gather(*(server.fetch(manifest) for server in fleet))
    assert all((folder / "m.gguf").read_bytes() == data for folder in folders)
    from_master = sum(server.came()[0] for server in fleet)
    assert len(data) <= from_master < 3 * len(data), "four times without peers"
    assert sum(server.came()[1] for server in fleet) + from_master == 4 * len(data)


async def test_a_peer_that_sends_wrong_bytes_is_not_asked_again(master: TestMaster, fleet: list[Server]) -> None:
    liar, honest, *_ = fleet
    data = os.urandom(6 * PIECE_BYTES)
    manifest = manifest_of(master, {"m.gguf": data})
    await liar.fetch(manifest)
    blob = liar.store.shelf.blob(manifest.files[0].sha256)
    blob.chmod(0o644)
    blob.write_bytes(os.urandom(len(data)))
    master.peers = (liar.peer,)
    assert ((await honest.fetch(manifest)) / "m.gguf").read_bytes() == data
    assert honest.came() == (len(data), 0)


async def test_peers_that_vanish_are_replaced_by_the_master(master: TestMaster, fleet: list[Server]) -> None:
    gone, there, *_ = fleet
    data = os.urandom(8 * PIECE_BYTES)
    manifest = manifest_of(master, {"m.gguf": data})
    await gone.fetch(manifest)
    gone.blobs.limit.bytes_per_second = PIECE_BYTES
    master.peers = (gone.peer,)
    fetching = asyncio.create_task(there.fetch(manifest))
    while not there.store.share(manifest):
        await asyncio.sleep(0.01)
    await gone.relay.close()
    assert ((await fetching) / "m.gguf").read_bytes() == data


async def test_a_master_that_is_gone_does_not_matter_to_those_whose_peers_have_it_all(
    master: TestMaster, fleet: list[Server]
) -> None:
    first, second, *_ = fleet
    small = {"m.gguf": os.urandom(PIECE_BYTES), "config.json": b"{}"}
    manifest = manifest_of(master, small)  # files of one piece: their hashes are in the manifest
    await first.fetch(manifest)
    peers, _ = await second.network.look(manifest.digest)
    await master.stop()

    async def look(digest: str) -> tuple[list[PeerSource], tuple[str, ...]]:
        return peers, ()

    second.network.look = look  # type: ignore[method-assign]
    assert ((await second.fetch(manifest)) / "m.gguf").read_bytes() == small["m.gguf"]


async def test_only_agents_of_this_ca_that_were_not_revoked_get_blobs(
    master: TestMaster, fleet: list[Server], folder: Path
) -> None:
    holder, *_ = fleet
    manifest = manifest_of(master, {"m.gguf": b"weights"})
    await holder.fetch(manifest)
    (file,) = manifest.files
    async with up(Server(folder, master, "srv-9")) as known, up(Server(folder, master, "srv-8")) as revoked:
        holder.revoked.add(certs.serial(revoked.identity.certificate_pem))
        assert await read(known, holder, file) == b"weights"
        with pytest.raises(FetchFailed):
            await read(revoked, holder, file)
    gateway = Server(folder, master, "gw-1")
    gateway.identity = identity_of(master, "gw-1", role="gateway")
    Relay(gateway.home, gateway.identity, lambda _: None)  # writes its certificate
    with pytest.raises(FetchFailed):
        await read(gateway, holder, file)
    await gateway.network.close()


async def test_a_certificate_that_is_revoked_cuts_what_it_is_fetching(master: TestMaster, fleet: list[Server]) -> None:
    holder, guest, *_ = fleet
    data = os.urandom(2 * PIECE_BYTES)
    manifest = manifest_of(master, {"m.gguf": data})
    await holder.fetch(manifest)
    holder.blobs.limit.bytes_per_second = PIECE_BYTES // 4
    (file,) = manifest.files
    reading = asyncio.create_task(read(guest, holder, file))
    while not holder.blobs.serving:
        await asyncio.sleep(0.01)
    holder.revoked.add(certs.serial(guest.identity.certificate_pem))
    holder.relay.cut_revoked()
    with pytest.raises(FetchFailed):
        await reading


async def read(reader: Server, holder: Server, file: ManifestFile) -> bytes:
    source = reader.network.source(holder.peer)
    piece = bytearray(min(PIECE_BYTES, file.size_bytes))
    assert sum([count async for count in source.read(file, 0, memoryview(piece))]) == len(piece)
    return bytes(piece)


async def test_a_server_is_not_asked_for_more_at_once_than_it_can_give(
    master: TestMaster, fleet: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, guest, *_ = fleet
    manifest = manifest_of(master, {"m.gguf": os.urandom(PIECE_BYTES)})
    await holder.fetch(manifest)
    monkeypatch.setattr("agent.store.serve._AT_ONCE", 0)
    with pytest.raises(FetchFailed, match="is busy"):
        await read(guest, holder, manifest.files[0])


async def test_a_peer_that_is_asked_for_anything_else_says_no(master: TestMaster, fleet: list[Server]) -> None:
    holder, guest, *_ = fleet
    source = guest.network.source(holder.peer)
    for method, path in (
        ("GET", "/"),
        ("GET", f"/blobs/{'0' * 64}"),
        ("GET", "/blobs/../identity.json"),
        ("PUT", "/have"),
    ):
        async with source.ranges._ask(method, path, {"Range": "bytes=0-1"}, b"") as answer:
            assert answer.status == 404, (method, path)
    assert await source.look(["0" * 64, "nonsense", "../x"]) == {}
    assert DOOR == "blobs"


async def test_a_peer_is_asked_about_no_more_files_than_it_hears_of(master: TestMaster, fleet: list[Server]) -> None:
    holder, guest, *_ = fleet
    manifest = manifest_of(master, {"m.gguf": b"weights"})
    await holder.fetch(manifest)
    sha256s = [manifest.files[0].sha256, *(f"{number:064x}" for number in range(30_000))]
    assert list(await guest.network.source(holder.peer).look(sha256s)) == sha256s[:1]


async def test_what_lies_in_a_store_on_the_same_disk_is_linked_not_copied(
    master: TestMaster, fleet: list[Server], folder: Path
) -> None:
    server = fleet[0]
    data = os.urandom(PIECE_BYTES + 1)
    manifest = manifest_of(master, {"m.gguf": data, "config.json": b"{}"})
    neighbour = folder / "store"
    for file in manifest.files:
        place = neighbour / file.sha256[:2] / file.sha256
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(master.blobs[file.sha256] if file.path == "m.gguf" else b"[]")  # one of them damaged
    master.neighbours = (str(folder / "nowhere"), str(neighbour))
    (weights,) = [file for file in manifest.files if file.path == "m.gguf"]
    begun = server.store.shelf.part(weights.sha256)
    begun.parent.mkdir(parents=True)
    begun.write_bytes(data[:1000])
    checkout = await server.fetch(manifest)
    assert not begun.exists(), "nobody needs what an earlier attempt fetched"
    assert (checkout / "m.gguf").samefile(neighbour / weights.sha256[:2] / weights.sha256)
    assert (checkout / "config.json").read_bytes() == b"{}"
    assert len(master.blob_ranges) == 1, "the damaged one"
