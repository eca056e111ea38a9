"""What a whole agent fetches ahead, keeps and tells its master."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.home import AgentHome
from agent.store.shelf import Label, Shelf, differs
from tests.agent.conftest import make_script, manifest_of, running
from tests.agent.master import TestMaster
from wire.manifest import Manifest
from wire.messages import CachedModel, CachePolicy, HeldModel, InstanceSpec
from wire.pieces import PIECE_BYTES

pytestmark = pytest.mark.asyncio


def told(master: TestMaster, digest: str) -> CachedModel | None:
    found = [model for model in (master.cache.models if master.cache else ()) if model.digest == digest]
    return found[0] if found else None


def is_whole(master: TestMaster, manifest: Manifest) -> bool:
    model = told(master, manifest.digest)
    return model is not None and model.progress == 1.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_is_held_is_fetched_before_anything_needs_it(master: TestMaster, home: AgentHome) -> None:
    manifest = manifest_of(master, {"m.gguf": os.urandom(PIECE_BYTES + 1)})
    async with running(home):
        await master.until(lambda: master.cache is not None)
        await master.want(generation=1, held=(HeldModel(model=manifest, model_name="m:1"),))
        await master.until(lambda: is_whole(master, manifest))
    model = told(master, manifest.digest)
    assert model is not None
    assert (model.model_name, model.held, model.in_use) == ("m:1", True, False)
    assert model.from_master_bytes == PIECE_BYTES + 1
    assert master.cache is not None
    assert master.cache.used_bytes == PIECE_BYTES + 1


async def test_why_something_held_does_not_come_is_told_and_it_heals(master: TestMaster, home: AgentHome) -> None:
    manifest = manifest_of(master, {"m.gguf": b"weights"})
    kept, master.blobs = master.blobs, {}
    async with running(home):
        await master.want(generation=1, held=(HeldModel(model=manifest, model_name="m:1"),))
        await master.until(
            lambda: (model := told(master, manifest.digest)) is not None and "does not have" in model.problem
        )
        master.blobs = kept
        await master.until(lambda: is_whole(master, manifest))


async def test_what_is_let_go_while_it_is_fetched_is_not_fetched_on(master: TestMaster, home: AgentHome) -> None:
    manifest = manifest_of(master, {"m.gguf": os.urandom(PIECE_BYTES)})
    master.hold_blobs = True
    async with running(home):
        await master.want(generation=1, held=(HeldModel(model=manifest, model_name="m:1"),))
        await until(lambda: bool(master.blob_ranges))
        await master.want(generation=2)
        await until(lambda: bool(master.blobs_given_up))
        await master.until(lambda: told(master, manifest.digest) is None)


async def test_of_a_model_only_as_many_versions_are_kept_as_the_master_says(
    master: TestMaster, home: AgentHome
) -> None:
    versions = [manifest_of(master, {"m.gguf": os.urandom(1000)}) for _ in range(3)]
    held = [HeldModel(model=manifest, model_name=f"m:{n}") for n, manifest in enumerate(versions)]
    async with running(home) as agent:
        await master.want(generation=1, held=tuple(held))
        await master.until(lambda: all(is_whole(master, manifest) for manifest in versions))
        await master.want(generation=2, held=(held[2],), cache=CachePolicy(keep_versions=2))
        await master.until(lambda: (one := told(master, versions[0].digest)) is not None and not one.held)
        agent._store.shelf.mark_used(versions[0].digest, time.time() - 100)
        agent._store.collect_garbage()
        await master.until(lambda: told(master, versions[0].digest) is None)
        assert is_whole(master, versions[1])
        assert is_whole(master, versions[2])


async def test_a_quota_that_what_is_held_exceeds_is_an_alarm(master: TestMaster, home: AgentHome) -> None:
    manifest = manifest_of(master, {"m.gguf": os.urandom(5000)})
    async with running(home):
        held = (HeldModel(model=manifest, model_name="m:1"),)
        await master.want(generation=1, held=held, cache=CachePolicy(quota_bytes=1000))
        await master.until(lambda: master.cache is not None and "more than the quota" in master.cache.alarm)
    assert master.cache is not None
    assert master.cache.quota_bytes == 1000


async def test_an_agent_that_is_installed_anew_takes_over_what_lies_there(master: TestMaster, home: AgentHome) -> None:
    """Also checkouts of a release that wrote nothing about them: they go unless something needs them."""
    manifest = manifest_of(master, {"m.gguf": os.urandom(1000)})
    async with running(home) as agent:
        await agent._store.fetch(manifest, lambda share: None, "m:1")
    shelf = Shelf(home.path)
    (shelf.models / ("0" * 64)).mkdir()
    (shelf.models / ".new-x").mkdir()
    asked = len(master.blob_ranges)
    async with running(home):
        await master.until(lambda: is_whole(master, manifest))
    assert len(master.blob_ranges) == asked
    assert not (shelf.models / ("0" * 64)).exists()
    (label, _) = shelf.labels()[0]
    assert label == Label(manifest, "m:1")


async def test_a_damaged_label_is_left_alone(master: TestMaster, home: AgentHome) -> None:
    shelf = Shelf(home.path)
    shelf.models.mkdir()
    (shelf.models / f"{'1' * 64}.json").write_bytes(b"{")
    async with running(home):
        await master.until(lambda: master.cache is not None)
    assert master.cache is not None
    assert master.cache.models == ()


async def test_the_limits_of_the_master_hold_at_once(master: TestMaster, home: AgentHome) -> None:
    async with running(home) as agent:
        policy = CachePolicy(download_bytes_per_second=1000, upload_bytes_per_second=2000)
        await master.want(generation=1, cache=policy)
        await master.until(lambda: agent.acceptance.state.generation == 1)
        assert agent._store.download_limit.bytes_per_second == 1000
        assert agent._blob_server.limit.bytes_per_second == 2000


def on_shared_storage(folder: Path, manifest: Manifest, **changed: Any) -> InstanceSpec:
    spec = make_script("exec sleep 300", manifest=manifest)
    return msgspec.structs.replace(spec, shared_dir=str(folder), **changed)


async def test_a_shared_folder_is_used_in_place_and_what_it_does_not_hold_is_fetched(
    master: TestMaster, home: AgentHome, folder: Path
) -> None:
    manifest = manifest_of(master, {"m.gguf": b"weights"})
    shared = folder / "shared"
    shared.mkdir()
    spec = on_shared_storage(shared, manifest)
    async with running(home) as agent:
        store = agent._store
        (shared / "m.gguf").write_bytes(b"weights")
        assert await store.prepare(spec, lambda share: None) == shared
        assert store.is_ready(spec)
        assert store.folder_of(spec) == shared
        assert master.blob_ranges == []
        (shared / "m.gguf").write_bytes(b"other")
        assert differs(shared, manifest) == "m.gguf has 5 bytes instead of 7"
        assert not store.is_ready(spec)
        assert await store.prepare(spec, lambda share: None) == store.model_dir(manifest) == store.folder_of(spec)
        (shared / "m.gguf").unlink()
        assert differs(shared, manifest) == "m.gguf: No such file or directory"
        (shared / "m.gguf").write_bytes(b"weights")
        store.shared_roots = ("/mnt/models",)
        assert store.folder_of(spec) == store.model_dir(manifest), "not where this server allows it"


async def test_what_is_held_on_shared_storage_counts_as_here(master: TestMaster, home: AgentHome, folder: Path) -> None:
    manifest = manifest_of(master, {"m.gguf": b"weights"})
    (folder / "shared").mkdir()
    (folder / "shared" / "m.gguf").write_bytes(b"weights")
    async with running(home):
        held = HeldModel(model=manifest, model_name="m:1", shared_dir=str(folder / "shared"))
        await master.want(generation=1, held=(held,))
        await master.until(lambda: is_whole(master, manifest))
    assert master.blob_ranges == []


async def test_a_fault_of_ours_in_a_fetch_ends_neither_the_agent_nor_the_trying(
    master: TestMaster, home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did once: a socket that was closed meanwhile raised what nobody had foreseen."""
    manifest = manifest_of(master, {"m.gguf": b"weights"})
    calls = 0
    real = Shelf.check_out

    def broken_once(self: Shelf, manifest: Manifest, model_name: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("negative file descriptor")
        real(self, manifest, model_name)

    monkeypatch.setattr(Shelf, "check_out", broken_once)
    async with running(home):
        await master.want(generation=1, held=(HeldModel(model=manifest, model_name="m:1"),))
        await master.until(lambda: is_whole(master, manifest))
    assert calls == 2
