"""Mending of damage, against what else goes on in the store at that moment."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from agent.store import Store
from tests.agent.conftest import manifest_of
from tests.agent.master import TestMaster
from tests.agent.store.test_scrub import flip
from tests.agent.store.test_store import ignore
from wire.manifest import Manifest

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
