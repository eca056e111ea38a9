"""What an earlier transfer of the same file left beside it is taken for what it is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from models_registry.download import partial, transfer
from models_registry.download.downloader import running
from models_registry.download.lanes import Control
from models_registry.download.partial import Partial
from models_registry.download.remote import Remote
from models_registry.download.transfer import Wanted
from tests.fakes.hub import FakeHub, HubFile, running_hub
from tests.waiting import wait_for
from wire.pace import Limit

BIG = os.urandom(2_000_000)


def a_hub() -> FakeHub:
    hub = FakeHub()
    hub.repo("org/model", {"big.bin": HubFile(BIG, lfs=True)})
    return hub


def wanted_of(hub: FakeHub, place: Path) -> Wanted:
    """Nobody has told its hash, only what the server calls it."""
    return Wanted(place, len(BIG), Remote(f"{hub.url}/org/model/resolve/main/big.bin", etag="", name="big.bin"))


@pytest.mark.asyncio
async def test_a_journal_is_not_believed_of_a_part_that_is_not_its_own(tmp_path: Path) -> None:
    """A worker was killed between its last two steps; later the finished file was cleaned away, the journal not."""
    place = tmp_path / "big.bin"
    async with running_hub(a_hub()) as hub:
        wanted = wanted_of(hub, place)
        part = Partial(place, len(BIG), wanted.identity)
        part.open()
        part.write(0, BIG)
        part.checkpoint()
        journal = place.with_name("big.bin.part.json").read_bytes()
        part.drop()
        place.with_name("big.bin.part.json").write_bytes(journal)
        async with running() as downloader:
            await downloader.fetch([wanted])
    assert place.read_bytes() == BIG


@pytest.mark.asyncio
async def test_a_file_that_is_whole_while_its_journal_is_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = os.fdatasync

    def slow(handle: int) -> None:
        """The disk is busy: the file may be whole, and put in its place, before this ends."""
        with contextlib.suppress(AssertionError):
            wait_for((tmp_path / "first.bin").exists, within_s=1)
        synced(handle)

    monkeypatch.setattr(partial.os, "fdatasync", slow)
    monkeypatch.setattr(transfer, "_CHECKPOINT_S", 0.0)
    monkeypatch.setattr(transfer, "_TICK_S", 0.005)
    async with running_hub(a_hub()) as hub, running(1) as downloader:
        wanted = [wanted_of(hub, tmp_path / name) for name in ("first.bin", "second.bin")]
        await downloader.fetch(wanted, control=Control(Limit(3_000_000)))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["first.bin", "first.bin.ok", "second.bin", "second.bin.ok"]
