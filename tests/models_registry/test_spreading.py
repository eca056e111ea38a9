"""What servers ask the master for to fetch from each other: hashes of pieces, peers; and what pins make of it."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import random
import time
from pathlib import Path

import msgspec
import pytest
from django.conf import settings
from django.test import Client, override_settings
from django.utils import timezone

from fleet.models import Gateway, Server, ServerState
from fleet.peers import PeerIndex
from fleet.services import record_hello, revoke_server, set_desired
from models_registry import pins, removal, services
from models_registry.errors import NotReady, RegistryError
from models_registry.models import ModelVersion, Pin, VersionState
from models_registry.pieces import DamagedBlob, clean_pieces, piece_hashes
from models_registry.versions import store
from tests.factories import make_model_version
from tests.fleet.nodes import make_hello
from tests.models_registry.test_blobs import body_of, make_node
from wire.messages import HeldModel
from wire.pieces import PIECE_BYTES, PeersReply, piece_count

CONTENT = random.Random(5).randbytes(2 * PIECE_BYTES + 100)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HASHES = b"".join(
    hashlib.sha256(CONTENT[start : start + PIECE_BYTES]).digest() for start in range(0, len(CONTENT), PIECE_BYTES)
)


@pytest.fixture
def version(tmp_path, transactional_db) -> ModelVersion:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.dat").write_bytes(CONTENT)
    return services.import_path("m", tmp_path / "m", now=timezone.now())


def test_hashes_of_pieces_are_ready_when_an_import_is(version, client: Client):
    assert (Path(settings.PIECES_DIR) / SHA256).read_bytes() == HASHES
    _, auth = make_node(Server, "a")
    answer = client.get(f"/api/v1/blobs/{SHA256}/pieces", headers=auth)
    assert (answer.status_code, answer.content) == (200, HASHES)
    assert len(HASHES) == 32 * piece_count(len(CONTENT))


def test_hashes_are_made_anew_when_they_were_lost_or_cut(version):
    place = Path(settings.PIECES_DIR) / SHA256
    for text in (None, HASHES[:-1]):
        place.unlink() if text is None else place.write_bytes(text)
        assert piece_hashes(SHA256, store().blob_path(SHA256)) == HASHES
        assert place.read_bytes() == HASHES


def test_a_damaged_blob_is_handed_to_nobody(version, client: Client):
    blob = store().blob_path(SHA256)
    blob.chmod(0o644)
    blob.write_bytes(CONTENT[:-1] + b"\0" if CONTENT[-1] else CONTENT[:-1] + b"\1")
    (Path(settings.PIECES_DIR) / SHA256).unlink()
    with pytest.raises(DamagedBlob):
        piece_hashes(SHA256, blob)
    _, auth = make_node(Server, "a")
    answer = client.get(f"/api/v1/blobs/{SHA256}/pieces", headers=auth)
    assert (answer.status_code, answer.json()["code"]) == (503, "blob_damaged")


def test_hashes_go_with_their_blob(version):
    removal.delete_version(version)
    assert not (Path(settings.PIECES_DIR) / SHA256).exists()


def test_hashes_that_are_being_written_are_left_alone() -> None:
    folder = Path(settings.PIECES_DIR)
    folder.mkdir()
    for name, age_s in (("being-written", 0), ("left-behind", 3600)):
        (folder / f".{name}").touch()
        os.utime(folder / f".{name}", (time.time() - age_s,) * 2)
    clean_pieces(set())
    assert [path.name for path in folder.iterdir()] == [".being-written"]


@pytest.mark.parametrize("path", [f"blobs/{SHA256}/pieces", f"manifests/{'0' * 64}/peers"])
def test_only_servers_that_may_ask_are_answered(version, client: Client, path: str):
    assert client.get(f"/api/v1/{path}").status_code == 401
    _, gateway = make_node(Gateway, "g")
    assert client.get(f"/api/v1/{path}", headers=gateway).status_code == 401
    server, auth = make_node(Server, "a")
    assert client.get(f"/api/v1/{path}", headers=auth).status_code == 200
    assert client.post(f"/api/v1/{path}", headers=auth).status_code == 405
    revoke_server(server, timezone.now())
    assert client.get(f"/api/v1/{path}", headers=auth).status_code in (401, 403)


def test_blobs_leave_by_the_proxy_where_one_is_set_up(version, client: Client):
    _, auth = make_node(Server, "a")
    url = f"/api/v1/blobs/{SHA256}"
    with override_settings(BLOB_ACCEL_PREFIX="/_blobs"):
        answer = client.get(url, headers={**auth, "X-Forwarded-Proto": "https"})
        assert answer.headers["X-Accel-Redirect"] == f"/_blobs{store().blob_path(SHA256).absolute()}"
        assert answer.content == b""
        assert client.get(url, headers=auth).headers.get("X-Accel-Redirect") is None, "it did not come by the proxy"
        refused = client.get(url, headers={"X-Forwarded-Proto": "https"})
        assert "X-Accel-Redirect" not in refused.headers


def online(name: str, now: dt.datetime) -> Server:
    server, _ = make_node(Server, name)
    record_hello(server.pk, make_hello(), now)
    return server


def has(server: Server, digest: str, now: dt.datetime) -> None:
    model = {"digest": digest, "model_name": "m:1", "progress": 1.0, "problem": ""}
    ServerState.objects.filter(server=server).update(cache={"models": [model]}, cache_at=now)


def test_peers_are_live_servers_that_have_it_or_should(version, transactional_db):
    now = timezone.now()
    asking, cached, wanted, other, silent = (online(name, now) for name in ("a", "b", "c", "d", "e"))
    for server in (asking, cached, silent):
        has(server, version.digest, now)
    held = (HeldModel(model=services.manifest_of(version), model_name="m:1"),)
    set_desired(wanted.pk, (), now, held=held)
    ServerState.objects.filter(server=silent).update(last_seen_at=now - dt.timedelta(minutes=5))
    index = PeerIndex()
    assert {peer.server_id for peer in index.holders(version.digest, asking.pk, now)} == {cached.pk, wanted.pk}
    assert index.holders("f" * 64, asking.pk, now) == []
    set_desired(wanted.pk, (), now)
    has(other, version.digest, now + dt.timedelta(seconds=1))
    revoke_server(cached, now)
    assert {peer.server_id for peer in index.holders(version.digest, asking.pk, now)} == {other.pk}


def test_a_server_is_told_of_its_peers_and_of_the_store_beside_it(version, client: Client):
    now = timezone.now()
    holder = online("b", now)
    has(holder, version.digest, now)
    _, auth = make_node(Server, "a")
    answer = client.get(f"/api/v1/manifests/{version.digest}/peers", headers=auth)
    reply = msgspec.json.decode(answer.content, type=PeersReply)
    (peer,) = reply.peers
    facts = ServerState.objects.get(server=holder).facts
    assert (peer.server_id, list(peer.addresses), peer.port) == (holder.pk, facts["addresses"], facts["relay_port"])
    assert reply.neighbours == (str(store().root.absolute() / "blobs" / "sha256"),)


def test_a_pin_is_made_once_and_let_go(version):
    server, _ = make_node(Server, "a")
    assert pins.pin(version, server) == pins.pin(version, server)
    pins.pin(version, None)
    pins.pin(version, None)
    made = {(version.pk, version.digest, False, None), (version.pk, version.digest, False, server.pk)}
    assert sorted(pins.pinned(), key=str) == sorted(made, key=str)
    pins.unpin(version, server)
    with pytest.raises(pins.NotPinned):
        pins.unpin(version, server)
    assert Pin.objects.count() == 1


def test_what_cannot_be_fetched_cannot_be_pinned(version):
    importing = make_model_version(state=VersionState.IMPORTING)
    with pytest.raises(NotReady):
        pins.pin(importing, None)
    server, _ = make_node(Server, "a")
    revoke_server(server, timezone.now())
    server.refresh_from_db()
    with pytest.raises(RegistryError, match="was revoked"):
        pins.pin(version, server)


def test_the_master_sends_to_all_servers_no_faster_than_it_was_told(version, client: Client, monkeypatch):
    """Two answers share one limit: the second waits for what the first took."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("wire.pace.asyncio.sleep", sleep)
    monkeypatch.setattr("models_registry.blobs._limit.bytes_per_second", 1e6)
    _, auth = make_node(Server, "a")
    for _ in range(2):
        answer = client.get(f"/api/v1/blobs/{SHA256}", headers=auth)
        assert len(body_of(answer)) == len(CONTENT)
    assert max(waited) > 1.5 * len(CONTENT) / 1e6
