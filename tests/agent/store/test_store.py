"""The store against a real TLS master: ranges, checks, room on the disk, and what must never be removed."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from agent.errors import CannotRun, CorruptBlob, DiskFull, FetchFailed
from agent.home import AgentHome
from agent.store import Store, swarm
from agent.store.parts import open_part
from agent.store.sources import Network
from tests.agent.conftest import manifest_of
from tests.agent.master import TestMaster
from wire.manifest import Manifest, ManifestFile
from wire.pieces import PIECE_BYTES

pytestmark = pytest.mark.asyncio
MIB = 2**20


def ignore(share: float) -> None:
    """No one looks at the progress."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that fail are asked again at once."""
    monkeypatch.setattr(swarm, "_REST_S", 0.01)
    monkeypatch.setattr(swarm, "_STALL_S", 1.0)


async def test_files_are_checked_out_as_links_to_verified_blobs(master: TestMaster, store: Store) -> None:
    manifest = manifest_of(master, {"a.gguf": b"weights" * 1000, "sub/b.json": b"{}", "empty": b""})
    folder = await store.fetch(manifest, ignore)
    assert (folder / "sub" / "b.json").read_bytes() == b"{}"
    assert (folder / "empty").read_bytes() == b""
    (weights,) = [file for file in manifest.files if file.path == "a.gguf"]
    assert (folder / "a.gguf").samefile(store.shelf.blob(weights.sha256))
    assert store.shelf.blob(weights.sha256).stat().st_mode & 0o777 == 0o444
    asked = len(master.blob_ranges)
    assert await store.fetch(manifest, ignore) == folder
    assert len(master.blob_ranges) == asked, "what is here is not asked for again"


async def test_a_piece_that_breaks_off_is_asked_for_again_and_nothing_else(master: TestMaster, store: Store) -> None:
    data = os.urandom(4 * PIECE_BYTES)
    manifest = manifest_of(master, {"m": data})
    master.break_after_bytes = MIB
    folder = await store.fetch(manifest, ignore)
    assert (folder / "m").read_bytes() == data
    assert sorted(Counter(master.blob_ranges).values()) == [1, 1, 1, 2]


async def test_what_is_there_is_not_fetched_again_by_the_next_agent(
    master: TestMaster, home: AgentHome, network: Network
) -> None:
    data = os.urandom(4 * PIECE_BYTES)
    manifest = manifest_of(master, {"m": data})
    part = open_part(manifest.files[0], Store(home.path, network).shelf.partial, [])
    part.write(PIECE_BYTES, data[PIECE_BYTES : 2 * PIECE_BYTES])
    part.mark(1)
    part.flush()
    part.close()  # the agent is killed here
    folder = await Store(home.path, network).fetch(manifest, ignore)
    assert (folder / "m").read_bytes() == data
    assert len(master.blob_ranges) == 3
    assert f"bytes={PIECE_BYTES}-{2 * PIECE_BYTES - 1}" not in master.blob_ranges


async def test_pieces_that_nobody_wrote_down_are_found_by_their_hashes(master: TestMaster, store: Store) -> None:
    """Also what an agent of the release before left: a file that is there up to where it broke off."""
    data = os.urandom(2 * PIECE_BYTES + 5)
    manifest = manifest_of(master, {"m": data})
    part = store.shelf.part(manifest.files[0].sha256)
    part.parent.mkdir(parents=True)
    part.write_bytes(data[: PIECE_BYTES + 100])
    assert ((await store.fetch(manifest, ignore)) / "m").read_bytes() == data
    assert len(master.blob_ranges) == 2


async def test_a_part_longer_than_the_file_is_thrown_away(master: TestMaster, store: Store) -> None:
    manifest = manifest_of(master, {"m": b"right"})
    part = store.shelf.part(manifest.files[0].sha256)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"wrong and too long")
    assert (await store.fetch(manifest, ignore) / "m").read_bytes() == b"right"


@pytest.mark.parametrize("sent", [b"wrong", b"rig"])
@pytest.mark.usefixtures("impatient")
async def test_a_blob_with_other_bytes_is_never_checked_out(master: TestMaster, store: Store, sent: bytes) -> None:
    manifest = manifest_of(master, {"m": b"right"})
    sha256 = manifest.files[0].sha256
    master.blobs[sha256] = sent
    with pytest.raises(FetchFailed):
        await store.fetch(manifest, ignore)
    assert not store.has(manifest)
    assert not store.shelf.blob(sha256).exists()
    master.blobs[sha256] = b"right"
    assert (await store.fetch(manifest, ignore) / "m").read_bytes() == b"right", "and it heals"


async def test_a_part_damaged_on_disk_is_found_out_and_fetched_anew(master: TestMaster, store: Store) -> None:
    data = os.urandom(PIECE_BYTES + 1)
    manifest = manifest_of(master, {"m": data})
    part = open_part(manifest.files[0], store.shelf.partial, [])
    part.mark(0)  # it says that it is there, and it is not
    part.flush()
    part.close()
    with pytest.raises(CorruptBlob):
        await store.fetch(manifest, ignore)
    assert (await store.fetch(manifest, ignore) / "m").read_bytes() == data


async def test_a_master_whose_hashes_of_pieces_are_of_another_file_is_not_believed(
    master: TestMaster, store: Store
) -> None:
    right, wrong = os.urandom(2 * PIECE_BYTES), os.urandom(2 * PIECE_BYTES)
    manifest = manifest_of(master, {"m": right})
    sha256 = manifest.files[0].sha256
    master.blobs[sha256] = wrong
    with pytest.raises(CorruptBlob, match="do not fit sha256"):
        await store.fetch(manifest, ignore)
    assert not store.has(manifest)
    assert not list(store.shelf.partial.glob("*"))


async def test_a_blob_that_the_master_does_not_have_is_named(master: TestMaster, store: Store) -> None:
    manifest = Manifest(files=(ManifestFile(path="m.gguf", size_bytes=3, sha256="0" * 64),))
    with pytest.raises(FetchFailed, match=r"the master does not have m\.gguf"):
        await store.fetch(manifest, ignore)


async def test_a_master_that_is_away_is_a_failure_to_be_tried_again(master: TestMaster, store: Store) -> None:
    manifest = manifest_of(master, {"m": b"x"})
    await master.stop()
    with pytest.raises(FetchFailed, match="could not be fetched from the master"):
        await store.fetch(manifest, ignore)
    await master.start()
    await store.fetch(manifest, ignore)


async def test_a_manifest_that_leaves_its_folder_is_refused(store: Store) -> None:
    manifest = Manifest(files=(ManifestFile(path="../evil", size_bytes=1, sha256="0" * 64),))
    with pytest.raises(CannotRun, match="damaged"):
        await store.fetch(manifest, ignore)


async def test_a_disk_that_is_too_small_is_said_before_a_byte_is_fetched(master: TestMaster, store: Store) -> None:
    manifest = Manifest(files=(ManifestFile(path="m", size_bytes=10**15, sha256="0" * 64),))
    with pytest.raises(DiskFull) as caught:
        await store.fetch(manifest, ignore)
    assert "the disk is too full: 953,674,316 MiB are needed" in caught.value.message
    assert "Free space" in caught.value.remedy
    assert master.blob_ranges == []


async def test_a_disk_that_becomes_full_meanwhile_is_not_called_a_failure_of_the_master(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        with pytest.raises(DiskFull, match="became full while m was fetched"):
            open_part(ManifestFile(path="m", size_bytes=2 * MIB, sha256="0" * 64), small, [])
    finally:
        subprocess.run(["umount", small], check=True)


async def test_two_fetches_of_one_blob_at_once_share_one_download(master: TestMaster, store: Store) -> None:
    data = os.urandom(MIB)
    one = manifest_of(master, {"m": data})
    other = manifest_of(master, {"m": data, "config.json": b"{}"})
    folders = await asyncio.gather(*(store.fetch(manifest, ignore) for manifest in (one, other, one)))
    assert all((folder / "m").read_bytes() == data for folder in folders)
    assert len(master.blob_ranges) == 2, "one for the model, one for its configuration"


async def test_a_cancelled_fetch_leaves_the_rest_to_the_next(master: TestMaster, store: Store) -> None:
    manifest = manifest_of(master, {"m": os.urandom(2 * MIB)})
    fetch = asyncio.create_task(store.fetch(manifest, ignore))
    while not store.shelf.part(manifest.files[0].sha256).exists() and not fetch.done():
        await asyncio.sleep(0)
    fetch.cancel()
    await asyncio.gather(fetch, return_exceptions=True)
    await store.fetch(manifest, ignore)
    assert store.has(manifest)


async def test_progress_ends_at_all_of_it_only_when_all_is_there(master: TestMaster, store: Store) -> None:
    shares: list[float] = []
    await store.fetch(manifest_of(master, {"m": os.urandom(MIB)}), shares.append)
    assert shares
    assert all(0 <= share <= 1 for share in shares)


async def test_over_the_quota_the_longest_unused_goes_and_what_is_in_use_stays(
    master: TestMaster, home: AgentHome, network: Network
) -> None:
    store = Store(home.path, network, quota_bytes=3 * MIB)
    old, used, new, newest = (manifest_of(master, {"m": os.urandom(MIB)}) for _ in range(4))
    for age, manifest in enumerate((newest, new, old)):
        await store.fetch(manifest, ignore)
        store.shelf.mark_used(manifest.digest, 1000 - age)
    store.in_use = lambda: [old]
    await store.fetch(used, ignore)  # makes room for itself
    assert store.has(old), "the oldest, but in use"
    assert store.has(used)
    assert not store.shelf.blob(new.files[0].sha256).exists()
    assert store.shelf.blob(newest.files[0].sha256).exists()
    assert store.collect_garbage() == 0


async def test_garbage_collection_never_touches_what_is_being_fetched(
    master: TestMaster, home: AgentHome, network: Network
) -> None:
    store = Store(home.path, network, quota_bytes=0)
    manifest = manifest_of(master, {f"part-{number}": os.urandom(MIB // 4) for number in range(4)})
    fetch = asyncio.create_task(store.fetch(manifest, ignore))
    while not fetch.done():
        store.collect_garbage()
        await asyncio.sleep(0.001)
    assert (await fetch / "part-3").exists()
    store.in_use = lambda: [manifest]
    assert store.collect_garbage() == 0
    assert store.has(manifest)
    store.in_use = lambda: ()
    assert store.collect_garbage() == MIB
    assert not store.has(manifest)


async def test_what_was_in_use_until_now_goes_last(master: TestMaster, home: AgentHome, network: Network) -> None:
    store = Store(home.path, network, quota_bytes=MIB)
    first, second = (manifest_of(master, {"m": os.urandom(MIB)}) for _ in range(2))
    store.in_use = lambda: [first, second]
    await store.fetch(first, ignore)
    await store.fetch(second, ignore)
    for age, manifest in enumerate((second, first)):
        store.shelf.mark_used(manifest.digest, 1000 - age)
    store.mark_used(first)
    store.in_use = lambda: ()
    assert store.collect_garbage() == MIB
    assert store.shelf.blob(first.files[0].sha256).exists()
    assert not store.shelf.blob(second.files[0].sha256).exists()


async def test_a_master_that_dies_in_the_middle_of_pieces_is_gone_on_with_when_it_is_back(
    master: TestMaster, store: Store
) -> None:
    data = os.urandom(8 * PIECE_BYTES)
    manifest = manifest_of(master, {"m": data})
    store.download_limit.bytes_per_second = 4 * PIECE_BYTES  # most of it is still to come when the first is here
    fetching = asyncio.create_task(store.fetch(manifest, ignore))
    while not store.share(manifest):
        await asyncio.sleep(0.01)
    await master.stop()
    with pytest.raises(FetchFailed):
        await fetching
    store.download_limit.bytes_per_second = None
    await master.start()
    assert (await store.fetch(manifest, ignore) / "m").read_bytes() == data


async def test_a_model_whose_removal_was_killed_is_not_taken_for_one_that_is_here(
    master: TestMaster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(master, {"a.gguf": b"weights", "b.json": b"{}"})
    folder = await store.fetch(manifest, ignore)

    def killed(path: Path, **more: bool) -> None:
        """After the first file."""
        (Path(path) / "a.gguf").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.store.shelf.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        store.shelf.remove(manifest.digest)
    monkeypatch.undo()
    store.held = lambda: [manifest]
    store.take_over()
    assert not store.has(manifest)
    assert (await store.fetch(manifest, ignore) / "a.gguf").read_bytes() == b"weights"
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [manifest.digest]


async def test_what_checkouts_are_is_read_once_and_again_when_it_changes(
    master: TestMaster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(master, {"m": b"weights"})
    await store.fetch(manifest, ignore, "m:1")
    reads, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read_bytes(path))
    (one,) = store.shelf.labels()
    assert store.shelf.labels() == [one]
    assert len(reads) <= 1
    store.shelf.label(manifest, "m:renamed")
    store.shelf.mark_used(manifest.digest, at=1000)
    ((label, used_at),) = store.shelf.labels()
    assert (label.model_name, used_at) == ("m:renamed", 1000)
    store.shelf.remove(manifest.digest)
    assert store.shelf.labels() == []
