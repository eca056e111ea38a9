"""Mending of damage, against what else goes on in the store at that moment."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from pathlib import Path

import msgspec
import pytest

from agent.errors import FetchFailed
from agent.store import Store, shelf
from agent.store.sources import Network
from tests.agent.conftest import manifest_of
from tests.agent.master import TestMaster
from tests.agent.store.test_scrub import flip
from tests.agent.store.test_store import ignore
from wire.manifest import Manifest
from wire.pieces import PIECE_BYTES, pack

pytestmark = pytest.mark.asyncio


async def damage(store: Store, manifest: Manifest) -> None:
    """Of its first file, found."""
    flip(store.shelf.blob(manifest.files[0].sha256), 0)
    await store.note_damaged(manifest.files[0], "is not what it was")


async def test_an_eviction_under_way_holds_up_only_the_mending(master: TestMaster, store: Store) -> None:
    manifest = manifest_of(master, {"m.gguf": b"weights"})
    await store.fetch(manifest, ignore)
    await damage(store, manifest)
    began, release = threading.Event(), threading.Event()

    def evict() -> None:
        with store._evicting:
            began.set()
            release.wait(5)

    evicting = asyncio.create_task(asyncio.to_thread(evict))
    await asyncio.to_thread(began.wait, 5)
    mending, began_s = asyncio.create_task(store.mend()), time.monotonic()
    await asyncio.sleep(0.3)
    assert time.monotonic() - began_s < 2, "the agent goes on"
    assert not mending.done()
    release.set()
    await asyncio.gather(mending, evicting)
    assert not store.model_dir(manifest).exists()


async def test_a_version_that_comes_into_use_meanwhile_is_mended(master: TestMaster, store: Store) -> None:
    data = os.urandom(1000)
    manifest = manifest_of(master, {"m.gguf": data})
    await store.fetch(manifest, ignore)
    await damage(store, manifest)
    answers = iter([[]])
    store.in_use = lambda: next(answers, [manifest])
    await store.mend()
    assert store.model_dir(manifest).is_dir()
    assert not store.has(manifest)
    await store.mend()
    assert store.has(manifest)
    assert (store.model_dir(manifest) / "m.gguf").read_bytes() == data


async def test_an_agent_that_was_killed_while_it_mended_leaves_no_damage(
    master: TestMaster, store: Store, network: Network
) -> None:
    """The first file was back, the checkout not changed yet."""
    manifest = manifest_of(master, {"m.gguf": b"weights", "n": b"more"})
    await store.fetch(manifest, ignore)
    await damage(store, manifest)
    shutil.copy(store.model_dir(manifest) / "n", blob := store.shelf.blob(manifest.files[0].sha256))
    blob.write_bytes(b"weights")
    place = store.model_dir(manifest) / "m.gguf"
    assert place.read_bytes() != b"weights"
    again = Store(store.shelf.blobs.parent, network)
    again.in_use = lambda: [manifest]
    again.take_over()
    assert again.has(manifest)
    assert place.read_bytes() == b"weights"
    assert place.samefile(blob)
    assert any("m.gguf" in name for name in again.damage.mended), "an engine that it left running has read the damage"


async def test_checkouts_are_looked_through_once_for_all_that_was_damaged(
    master: TestMaster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(master, {f"{number}": os.urandom(10) for number in range(30)})
    await store.fetch(manifest, ignore)
    for file in manifest.files:
        await store.note_damaged(file, "is not what it was")
    store.in_use = lambda: [manifest]
    looks, labels = [], store.shelf.labels
    monkeypatch.setattr(store.shelf, "labels", lambda: looks.append(1) or labels())
    await store.mend()
    assert store.has(manifest)
    assert len(looks) < 10


async def test_a_version_that_goes_while_its_file_is_put_back_stops_nothing(master: TestMaster, store: Store) -> None:
    stays, goes = (manifest_of(master, {"m.gguf": b"weights", "a": name}) for name in (b"1", b"2"))
    for manifest in (stays, goes):
        await store.fetch(manifest, ignore)
    flip(store.model_dir(stays) / "m.gguf", 0)
    (store.shelf.blob(stays.files[1].sha256)).unlink()
    store.damage.files = {stays.files[1].sha256: stays.files[1]}
    labels = store.shelf.labels()
    store.shelf.remove(goes.digest)
    store.shelf.labels = lambda: labels  # type: ignore[method-assign]  # looked at just before
    store.in_use = lambda: [stays]
    await store.fetch(stays, ignore)
    assert store.has(stays)
    assert (store.model_dir(stays) / "m.gguf").read_bytes() == b"weights"
    assert not list(store.shelf.models.glob(".link-*"))


async def test_what_a_neighbour_has_leaves_no_part_behind(master: TestMaster, store: Store, folder: Path) -> None:
    """Nothing but a full disk would ever remove it: it is as large as the file."""
    data = os.urandom(1000)
    manifest = manifest_of(master, {"m.gguf": data})
    await store.fetch(manifest, ignore)
    store.in_use = lambda: [manifest]
    await damage(store, manifest)
    assert list(store.shelf.partial.iterdir())
    sha256 = manifest.files[0].sha256
    neighbour = folder / "neighbour" / sha256[:2] / sha256
    neighbour.parent.mkdir(parents=True)
    neighbour.write_bytes(data)
    master.neighbours = (str(folder / "neighbour"),)
    await store.mend()
    assert store.has(manifest)
    assert store.shelf.blob(sha256).samefile(neighbour)
    assert not list(store.shelf.partial.iterdir())


async def test_notes_of_an_earlier_fetch_do_not_vouch_for_damage(master: TestMaster, store: Store) -> None:
    """An agent was killed between the end of the fetch and the removal of the notes."""
    data = os.urandom(2 * PIECE_BYTES)
    manifest = manifest_of(master, {"m.gguf": data})
    await store.fetch(manifest, ignore)
    store.in_use = lambda: [manifest]
    have = store.shelf.part(manifest.files[0].sha256).with_suffix(".have")
    have.write_bytes(msgspec.json.encode({"size_bytes": len(data), "done": pack({0, 1}, 2)}))
    asked = len(master.blob_ranges)
    await damage(store, manifest)
    await store.mend()
    assert len(master.blob_ranges) == asked + 1


async def test_an_agent_that_is_killed_while_it_keeps_a_copy_does_not_forget_the_damage(
    master: TestMaster, store: Store, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a hundred gigabytes, or the agent was told to stop."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    data = os.urandom(2 * PIECE_BYTES)
    manifest = manifest_of(master, {"m.gguf": data})
    await store.fetch(manifest, ignore)
    monkeypatch.setattr(shelf, "_copy_readable", killed)
    flip(store.shelf.blob(manifest.files[0].sha256), 0)
    with pytest.raises(KeyboardInterrupt):
        store.shelf.set_aside(manifest.files[0], keep=True)
    again = Store(store.shelf.blobs.parent, network)
    again.in_use = lambda: [manifest]
    again.take_over()
    assert not again.has(manifest)
    await again.mend()
    assert (store.model_dir(manifest) / "m.gguf").read_bytes() == data


async def test_damage_is_a_problem_once_it_could_not_be_mended(master: TestMaster, store: Store) -> None:
    """The master replaces an instance in place at once when its model has a problem; else when it is there."""
    manifest = manifest_of(master, {"m.gguf": b"weights"})
    await store.fetch(manifest, ignore)
    store.in_use = lambda: [manifest]
    await damage(store, manifest)
    (model,) = store.cached()
    assert model.progress < 1
    assert model.problem == ""
    kept, master.blobs = master.blobs, {}
    with pytest.raises(FetchFailed):
        await store.mend()
    (model,) = store.cached()
    assert "damaged" in model.problem
    assert "does not have" in model.problem
    master.blobs = kept
    await store.mend()
    (model,) = store.cached()
    assert (model.progress, model.problem) == (1.0, "")


async def test_damage_counts_at_once_though_another_version_with_the_file_is_being_fetched(
    master: TestMaster, store: Store
) -> None:
    here = manifest_of(master, {"m.gguf": b"weights"})
    coming = manifest_of(master, {"m.gguf": b"weights", "n": os.urandom(1000)})
    await store.fetch(here, ignore)
    store.in_use = lambda: [here]
    master.hold_blobs = True
    fetching = asyncio.create_task(store.fetch(coming, ignore))
    while not master.blob_ranges[-1:] or len(master.blob_ranges) < 2:
        await asyncio.sleep(0.01)
    flip(store.shelf.blob(here.files[0].sha256), 0)
    noting = asyncio.create_task(store.note_damaged(here.files[0], "is not what it was"))
    await asyncio.sleep(0.05)
    assert not noting.done()
    assert not store.has(here)
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    master.hold_blobs = False
    await noting
    assert not store.has(here)
    await store.mend()
    assert store.has(here)
