"""Damage on a server's disk: found by reading, mended from elsewhere, told; and nothing that is right is fetched."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from agent.home import AgentHome
from agent.store import scrub
from agent.store import store as store_module
from agent.store.damage import Damage
from agent.store.shelf import Shelf
from tests.agent.conftest import make_script, manifest_of, running
from tests.agent.master import TestMaster
from tests.agent.store.test_holder import is_whole, told, until
from wire.manifest import Manifest
from wire.messages import CachePolicy, HeldModel
from wire.pieces import PIECE_BYTES

pytestmark = pytest.mark.asyncio
ALWAYS = CachePolicy(scrub_every_s=0.0)
YEAR_S = 365 * 86400.0


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "_LOOK_EVERY_S", 3600.0)  # but when the master says something else
    monkeypatch.setattr(scrub, "_MEND_EVERY_S", 0.05)
    monkeypatch.setattr(scrub, "_KEEP_EVERY_S", 0.0)


def held(manifest: Manifest) -> tuple[HeldModel, ...]:
    return (HeldModel(model=manifest, model_name="m:1"),)


def flip(path: Path, at: int) -> None:
    """Another bit, as a disk does it: neither length nor time say so."""
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def is_right(path: Path, sha256: str = "") -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == (sha256 or path.name)


def blob_of(home: AgentHome, manifest: Manifest, path: str = "m.gguf") -> Path:
    (file,) = [file for file in manifest.files if file.path == path]
    return Shelf(home.path).blob(file.sha256)


async def test_a_damaged_piece_is_fetched_again_and_nothing_else(master: TestMaster, home: AgentHome) -> None:
    data = os.urandom(3 * PIECE_BYTES)
    manifest = manifest_of(master, {"m.gguf": data, "sub/b.json": b"{}"})
    async with running(home):
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        blob, place = blob_of(home, manifest), home.path / "models" / manifest.digest / "m.gguf"
        with place.open("rb") as engine:
            asked = len(master.blob_ranges)
            flip(blob, PIECE_BYTES + 5)
            await master.want(generation=2, held=held(manifest), cache=ALWAYS)
            await until(lambda: blob.exists() and blob.read_bytes() == data)
            await until(lambda: place.samefile(blob))
            assert engine.read() != data, "what an engine has open stays what it was"
        await master.until(lambda: is_whole(master, manifest))
    assert master.blob_ranges[asked:] == [f"bytes={PIECE_BYTES}-{2 * PIECE_BYTES - 1}"]
    assert place.stat().st_mode & 0o777 == 0o444
    assert not list(blob.parent.parent.glob("partial/*"))


async def test_when_it_was_read_is_told_and_outlasts_the_agent(master: TestMaster, home: AgentHome) -> None:
    manifest = manifest_of(master, {"m.gguf": b"weights", "b.json": b"{}"})
    began = time.time()
    async with running(home):
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        model = told(master, manifest.digest)
        assert model is not None
        assert model.verified_at == 0.0, "not since it came"
        await master.want(generation=2, held=held(manifest), cache=ALWAYS)
        await master.until(lambda: (told(master, manifest.digest) or model).verified_at >= began - 1)
        await master.want(generation=3, held=held(manifest))
        await until(lambda: len(Shelf(home.path).times("verified")) == 2)
    master.received.clear()
    async with running(home):
        await master.until(lambda: (one := told(master, manifest.digest)) is not None and one.verified_at > began - 1)


async def test_only_what_is_due_is_read(master: TestMaster, home: AgentHome) -> None:
    data = {name: os.urandom(1000) for name in ("new", "old", "noted", "ahead")}
    manifest = manifest_of(master, data)
    shelf = Shelf(home.path)
    async with running(home):
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
    blobs = {name: blob_of(home, manifest, name) for name in data}
    os.utime(blobs["old"], (1, 1))
    os.utime(blobs["noted"], (1, 1))
    shelf.keep_times("verified", {blobs["noted"].name: time.time(), blobs["ahead"].name: time.time() + YEAR_S})
    before = shelf.times("verified")
    async with running(home):
        await master.want(generation=2, held=held(manifest), cache=CachePolicy(scrub_every_s=YEAR_S))
        await until(lambda: len(shelf.times("verified")) == 3)
    after = shelf.times("verified")
    assert after[blobs["noted"].name] == before[blobs["noted"].name]
    assert after[blobs["ahead"].name] <= time.time(), "a clock that was set back"
    assert blobs["new"].name not in after


async def test_what_nothing_needs_goes_instead(master: TestMaster, home: AgentHome) -> None:
    gone = manifest_of(master, {"m.gguf": os.urandom(1000), "same": b"shared"})
    stays = manifest_of(master, {"n.gguf": os.urandom(1000), "same": b"shared"})
    async with running(home) as agent:
        await master.want(generation=1, held=held(stays))
        await agent._store.fetch(gone, lambda share: None, "m:2")
        await master.until(lambda: is_whole(master, gone) and is_whole(master, stays))
        asked = len(master.blob_ranges)
        flip(blob_of(home, gone), 0)
        await master.want(generation=2, held=held(stays), cache=ALWAYS)
        await master.until(lambda: told(master, gone.digest) is None)
        assert is_whole(master, stays)
        assert not blob_of(home, gone).exists()
        assert agent._store.damage.files == {}
    assert len(master.blob_ranges) == asked


async def test_one_file_of_two_versions_is_mended_in_both(master: TestMaster, home: AgentHome) -> None:
    one = manifest_of(master, {"m.gguf": b"weights", "a": b"1"})
    two = manifest_of(master, {"sub/m.gguf": b"weights", "a": b"2"})
    both = (HeldModel(model=one, model_name="m:1"), HeldModel(model=two, model_name="m:2"))
    async with running(home):
        await master.want(generation=1, held=both)
        await master.until(lambda: is_whole(master, one) and is_whole(master, two))
        flip(blob_of(home, one), 3)
        await master.want(generation=2, held=both, cache=ALWAYS)
        models = home.path / "models"
        places = [models / one.digest / "m.gguf", models / two.digest / "sub" / "m.gguf"]
        await until(lambda: all(place.read_bytes() == b"weights" for place in places))
        await master.until(lambda: is_whole(master, one) and is_whole(master, two))


async def test_until_it_is_mended_it_is_not_whole_and_no_engine_starts_with_it(
    master: TestMaster, home: AgentHome
) -> None:
    """Also for the next agent: what is missing below a checkout is found at its start."""
    manifest = manifest_of(master, {"m.gguf": os.urandom(PIECE_BYTES + 7)})
    async with running(home) as agent:
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        kept, master.blobs = master.blobs, {}
        flip(blob_of(home, manifest), PIECE_BYTES + 2)
        await master.want(generation=2, held=held(manifest), cache=ALWAYS)
        await master.until(lambda: not is_whole(master, manifest))
        model = told(master, manifest.digest)
        assert model is not None
        await master.until(lambda: "damaged" in (told(master, manifest.digest) or model).problem)
        assert not agent._store.has(manifest)
    async with running(home) as agent:
        await until(lambda: not agent._store.has(manifest))
        master.blobs = kept
        await master.until(lambda: is_whole(master, manifest))


async def test_engines_that_may_have_read_the_damage_are_an_alarm(master: TestMaster, home: AgentHome) -> None:
    spec = make_script("sleep 1000", manifest=manifest_of(master, {"m.gguf": b"weights"}))
    async with running(home):
        await master.want(spec, generation=1)
        await master.until(lambda: is_whole(master, spec.model))
        blob = blob_of(home, spec.model, spec.model.files[0].path)
        flip(blob, 0)
        await master.want(spec, generation=2, cache=ALWAYS)
        await master.until(lambda: master.cache is not None and "restart the deployments" in master.cache.alarm)
        assert master.cache is not None
        assert spec.model.files[0].path in master.cache.alarm
    master.received.clear()
    async with running(home):  # an agent that was updated meanwhile
        await master.until(lambda: master.cache is not None and "restart the deployments" in master.cache.alarm)


async def test_without_room_for_a_second_one_all_of_it_is_fetched(
    master: TestMaster, home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(master, {"m.gguf": os.urandom(2 * PIECE_BYTES)})
    async with running(home) as agent:
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        monkeypatch.setattr(agent._store, "free_bytes", lambda: store_module.DISK_RESERVE_BYTES)
        asked = len(master.blob_ranges)
        flip(blob_of(home, manifest), 0)
        await master.want(generation=2, held=held(manifest), cache=ALWAYS)
        await until(lambda: len(master.blob_ranges) >= asked + 2)
        await master.until(lambda: is_whole(master, manifest))


async def test_a_full_disk_is_no_reason_not_to_mend(
    master: TestMaster, home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkouts must not hold the room that the right file needs."""
    manifest = manifest_of(master, {"m.gguf": os.urandom(2 * PIECE_BYTES), "b.json": b"{}"})
    room_bytes = 3 * PIECE_BYTES + store_module.DISK_RESERVE_BYTES

    def disk_usage(_: object) -> SimpleNamespace:
        sizes = {status.st_ino: status.st_size for status in (path.stat() for path in home.path.rglob("*"))}
        return SimpleNamespace(free=room_bytes - sum(size for size in sizes.values() if size >= PIECE_BYTES))

    async with running(home):
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        monkeypatch.setattr(store_module.shutil, "disk_usage", disk_usage)
        flip(blob_of(home, manifest), 0)
        await master.want(generation=2, held=held(manifest), cache=ALWAYS)
        await until(lambda: is_right(blob_of(home, manifest)))
        await until(lambda: is_right(home.path / "models" / manifest.digest / "m.gguf", blob_of(home, manifest).name))


async def test_a_file_that_became_shorter_is_mended(master: TestMaster, home: AgentHome) -> None:
    data = os.urandom(PIECE_BYTES + 100)
    manifest = manifest_of(master, {"m.gguf": data})
    async with running(home):
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        blob = blob_of(home, manifest)
        os.truncate(blob, PIECE_BYTES)
        await master.want(generation=2, held=held(manifest), cache=ALWAYS)
        await until(lambda: blob.exists() and blob.read_bytes() == data)


async def test_reading_is_paced_and_ends_with_the_agent(
    master: TestMaster, home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(master, {"m.gguf": os.urandom(3 * 2**20)})
    async with running(home):
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        policy = CachePolicy(scrub_every_s=0.0, scrub_bytes_per_second=1000)
        await master.want(generation=2, held=held(manifest), cache=policy)
        await asyncio.sleep(0.5)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert Shelf(home.path).times("verified") == {}


async def test_notes_that_cannot_be_read_are_none(home: AgentHome) -> None:
    shelf = Shelf(home.path)
    shelf.keep_times("verified", {"a": 1.0})
    assert shelf.times("verified") == {}, "there are no blobs"
    shelf.blobs.mkdir()
    shelf.keep_times("verified", {"a": 1.0})
    assert shelf.times("verified") == {"a": 1.0}
    (shelf.blobs / "verified.json").write_bytes(msgspec.json.encode({"a": "b"}))
    assert shelf.times("verified") == {}
    shutil.rmtree(shelf.blobs)


async def test_an_agent_that_is_short_of_something_throws_nothing_away(
    master: TestMaster, home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(master, {"m.gguf": b"weights", "n": b"1", "o": b"2"})
    tried = []

    def out_of_files(*_: object) -> None:
        tried.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    async with running(home) as agent:
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        monkeypatch.setattr(os, "posix_fadvise", out_of_files)
        with blob_of(home, manifest).open("rb") as before:
            await master.want(generation=2, held=held(manifest), cache=ALWAYS)
            await until(lambda: len(tried) == 3)
            assert agent._store.has(manifest)
            assert os.fstat(before.fileno()).st_ino == blob_of(home, manifest).stat().st_ino, "the same file as before"


async def test_what_cannot_be_mended_now_is_tried_again_while_others_are_read(
    master: TestMaster, home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And why it is not is told."""
    monkeypatch.setattr(scrub, "_MEND_EVERY_S", 0.1)
    bad = manifest_of(master, {"m.gguf": b"weights"})
    good = manifest_of(master, {f"{number}": os.urandom(2**20) for number in range(8)})
    spec = make_script("sleep 1000", manifest=good)
    used = make_script("sleep 1000", manifest=bad, instance_id="inst-2")
    slow = CachePolicy(scrub_every_s=60.0, scrub_bytes_per_second=1_500_000)
    async with running(home):
        await master.want(spec, used, generation=1)
        await master.until(lambda: is_whole(master, bad) and is_whole(master, good))
        for file in good.files:
            os.utime(Shelf(home.path).blob(file.sha256), (2, 2))
        blob = blob_of(home, used.model, used.model.files[0].path)
        flip(blob, 0)
        os.utime(blob, (1, 1))
        kept, master.blobs = master.blobs, {}
        await master.want(spec, used, generation=2, cache=slow)
        await master.until(lambda: not is_whole(master, bad))
        master.blobs = kept
        began = time.monotonic()
        await until(lambda: blob.exists() and blob.read_bytes() == b"weights")
        assert time.monotonic() - began < 3


async def test_what_breaks_the_mending_does_not_break_the_reading(
    master: TestMaster, home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "_MEND_AT_LEAST_EVERY_S", 0.1)
    manifest = manifest_of(master, {"bad": b"1", "good": b"2"})
    partial = Shelf(home.path).partial
    async with running(home):
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        partial.rename(partial.with_name("away"))
        partial.touch()  # no part can be opened in it
        bad = blob_of(home, manifest, "bad")
        flip(bad, 0)
        os.utime(bad, (1, 1))
        await master.want(generation=2, held=held(manifest), cache=ALWAYS)
        await until(lambda: blob_of(home, manifest, "good").name in Shelf(home.path).times("verified"))
        partial.unlink()
        await until(lambda: bad.exists() and bad.read_bytes() == b"1")


async def test_reading_ends_when_the_master_wants_none(master: TestMaster, home: AgentHome) -> None:
    manifest = manifest_of(master, {f"{number}": os.urandom(2**20) for number in range(9)})
    async with running(home) as agent:
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        slow = CachePolicy(scrub_every_s=0.0, scrub_bytes_per_second=4_000_000)
        await master.want(generation=2, held=held(manifest), cache=slow)
        await until(lambda: len(agent._scrub._times) == 1)
        await master.want(generation=3, held=held(manifest))
        await asyncio.sleep(1)
        assert len(agent._scrub._times) < 4


async def test_a_slower_pace_holds_from_then_on(master: TestMaster, home: AgentHome) -> None:
    """What was read at the old one is not made up for."""
    manifest = manifest_of(master, {"m.gguf": os.urandom(40 * 2**20)})
    async with running(home) as agent:
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        began = time.monotonic()
        policy = CachePolicy(scrub_every_s=YEAR_S, scrub_bytes_per_second=20_000_000)

        def pace() -> CachePolicy:
            late = time.monotonic() - began > 1
            return msgspec.structs.replace(policy, scrub_bytes_per_second=10_000_000 if late else 40_000_000)

        agent._scrub._policy = pace
        await asyncio.to_thread(agent._scrub._hash, blob_of(home, manifest))
        assert time.monotonic() - began < 3


async def test_leaving_the_page_cache_alone_costs_the_same_at_the_end_of_a_file_as_at_its_start(
    master: TestMaster, home: AgentHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(master, {"m.gguf": os.urandom(40 * 2**20)})
    spans = []
    async with running(home) as agent:
        await master.want(generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest))
        monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: spans.append((start, length)))
        await asyncio.to_thread(agent._scrub._hash, blob_of(home, manifest))
    assert max(length for _, length in spans) <= 16 * 2**20
    assert all(start <= before[0] + before[1] for before, (start, _) in itertools.pairwise(spans)), "without a gap"
    assert (spans[0][0], sum(spans[-1])) == (0, 40 * 2**20)


async def test_a_version_without_files_stops_nothing(master: TestMaster, home: AgentHome) -> None:
    manifest = manifest_of(master, {"m.gguf": b"weights"})
    async with running(home):
        await master.want(make_script("sleep 1000"), generation=1, held=held(manifest))
        await master.until(lambda: is_whole(master, manifest) and is_whole(master, Manifest(files=())))
        await master.want(make_script("sleep 1000"), generation=2, held=held(manifest), cache=ALWAYS)
        await until(lambda: len(Shelf(home.path).times("verified")) == 1)


async def test_the_alarm_names_a_few_and_counts_the_rest(home: AgentHome) -> None:
    """A message of the agent may have 900,000 bytes, and a page a sentence."""
    damage, now = Damage(Shelf(home.path)), time.time()
    damage.mended = {f"m:1: {number:05}.safetensors": now for number in range(20_000)}
    alarm = damage.alarm()
    assert "00000.safetensors" in alarm
    assert "and 19995 more" in alarm
    assert len(alarm) < 500
    damage.mended = {"m:1: a": now, "m:1: old": now - 25 * 3600}
    assert "more" not in damage.alarm()
    assert "old" not in damage.alarm()
    damage.mended = {}
    assert damage.alarm() == ""
