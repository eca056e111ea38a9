"""The downloader against a hub that does all that hubs, networks and disks do."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models_registry.download import lanes, transfer
from models_registry.download.downloader import running
from models_registry.download.lanes import Control
from models_registry.download.partial import Partial
from models_registry.download.remote import Remote
from models_registry.download.transfer import Progress, Wanted
from models_registry.errors import (
    ImportCancelled,
    NoSpace,
    RegistryError,
    SourceChanged,
    SourceGone,
    SourceRefused,
    SourceUnreachable,
    WrongHash,
)
from tests.fakes.hub import FakeHub, Fault, HubFile, running_hub, serving_hub
from wire.pace import Limit

CHANCE = random.Random(7)
BIG = CHANCE.randbytes(3_000_000)
SMALL = b'{"model_type": "llama"}'
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", 300_000)
    monkeypatch.setattr(transfer, "BLOCK_BYTES", 500_000)
    monkeypatch.setattr(lanes, "LEAST_STOLEN", 50_000)
    monkeypatch.setattr(lanes, "_FIRST_PAUSE_S", 0.005)


def make_hub(**files: bytes) -> FakeHub:
    hub = FakeHub()
    hub.repo("org/model", {"big.bin": HubFile(BIG, lfs=True), "config.json": HubFile(SMALL)})
    return hub


def wanted(hub: FakeHub, folder: Path, path: str = "big.bin", **changes: Any) -> Wanted:
    repo = hub.repos["org/model"]
    file = repo.commits[repo.refs["main"]][path]
    remote = Remote(f"{hub.url}/org/model/resolve/main/{path}", headers={"Authorization": "Bearer t"}, name=path)
    hashes = {"sha256": file.sha256} if file.lfs else {"git_sha1": file.git_sha1}
    return Wanted(**{"path": folder / path, "size": file.size, "remote": remote, **hashes, **changes})


async def fetch(hub: FakeHub, folder: Path, *more: Wanted, connections: int = 4, **options: Any) -> None:
    files = more or (wanted(hub, folder), wanted(hub, folder, "config.json"))
    async with running(connections) as downloader:
        done = await downloader.fetch(files, **options)
    assert [one.size for one in done] == [one.size for one in files]


def is_whole(folder: Path) -> bool:
    return (folder / "big.bin").read_bytes() == BIG and (folder / "config.json").read_bytes() == SMALL


@pytest.mark.asyncio
async def test_files_come_whole_by_many_connections_and_leave_nothing_beside(tmp_path: Path) -> None:
    async with running_hub(make_hub()) as hub:
        hub.bytes_per_second = 2_000_000
        told: list[Progress] = []
        await fetch(hub, tmp_path, progress=told.append)
        assert is_whole(tmp_path)
        assert 2 <= hub.most_open <= 8  # some are just being closed
        assert hub.sent["big.bin"] < len(BIG) * 1.5
        assert {path.name for path in tmp_path.iterdir()} == {"big.bin", "big.bin.ok", "config.json", "config.json.ok"}
        assert (tmp_path / "big.bin").stat().st_mode & 0o777 == 0o444
        assert told[-1].done_bytes == told[-1].total_bytes == len(BIG) + len(SMALL)
        assert all(one.authorization == "Bearer t" for one in hub.asked if one.host == "hub")
        assert all(not one.authorization for one in hub.asked if one.host == "cdn")


@pytest.mark.asyncio
async def test_connections_are_given_up_and_had_back_while_it_runs(tmp_path: Path) -> None:
    async with running_hub(make_hub()) as hub:
        hub.bytes_per_second = 150_000
        control = Control()
        fetching = asyncio.create_task(fetch(hub, tmp_path, connections=8, control=control))
        await _until(lambda: hub.open >= 4)
        control.connections = 1
        await _until(lambda: hub.open == 1)
        hub.bytes_per_second, control.connections = 0, None
        await fetching
        assert is_whole(tmp_path)


async def _until(is_so: Any) -> None:
    for _ in range(3000):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


@pytest.mark.asyncio
async def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    async with running_hub(make_hub()) as hub:
        await fetch(hub, tmp_path)
        sent = hub.sent.total()
        await fetch(hub, tmp_path)
        assert hub.sent.total() == sent


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, times=3),
        Fault(status=503, times=2, retry_after="0"),
        Fault(status=429, times=2, retry_after="Wed, 01 Jan 2020 00:00:00 GMT"),
        Fault(cut_after=1000, times=5),
        Fault(cut_after=0, times=3),
        Fault(truncate_to=5000, times=3),
        Fault(ignore_range=True, times=1),
        Fault(ignore_range=True, times=100),
        Fault(at="hub", status=502, times=2),
    ],
    ids=str,
)
@pytest.mark.asyncio
async def test_what_passes_is_tried_again(tmp_path: Path, fault: Fault) -> None:
    async with running_hub(make_hub()) as hub:
        hub.faults = [fault]
        await fetch(hub, tmp_path)
        assert is_whole(tmp_path)


@pytest.mark.parametrize("flips", [[5], [0, 2_999_999], [299_999, 300_000, 1_700_000]])
@pytest.mark.asyncio
async def test_a_damaged_piece_is_found_and_fetched_again(tmp_path: Path, flips: list[int]) -> None:
    async with running_hub(make_hub()) as hub:
        hub.faults = [Fault("big.bin", flip_at=at) for at in flips]
        await fetch(hub, tmp_path, connections=1)
        assert is_whole(tmp_path)


@pytest.mark.parametrize("path", ["big.bin", "config.json"])
@pytest.mark.asyncio
async def test_a_source_that_lies_is_told_with_both_hashes_and_nothing_is_kept(tmp_path: Path, path: str) -> None:
    async with running_hub(make_hub()) as hub:
        hub.faults = [Fault(path, flip_at=7, times=1000)]
        with pytest.raises(WrongHash) as caught:
            await fetch(hub, tmp_path)
        good = wanted(hub, tmp_path, path)
        assert (good.sha256 or good.git_sha1) in caught.value.message
        assert not list(tmp_path.glob(f"{path}*"))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=404, times=99), SourceGone),
        (Fault(at="hub", status=403, times=99), SourceRefused),
        (Fault(at="hub", redirect_to="loop", times=99), SourceUnreachable),
        (Fault(status=500, times=999), SourceUnreachable),
        (Fault(etag="another", times=99), SourceChanged),
        (Fault(pad=5, ignore_range=True, times=99), SourceChanged),
    ],
    ids=str,
)
@pytest.mark.asyncio
async def test_what_does_not_pass_is_told(tmp_path: Path, fault: Fault, error: type[RegistryError]) -> None:
    async with running_hub(make_hub()) as hub:
        hub.faults = [fault]
        etag = wanted(hub, tmp_path).sha256
        remote = Remote(f"{hub.url}/org/model/resolve/main/big.bin", etag=etag, name="big.bin")
        if error is SourceGone:  # of the hub itself: what the CDN lost is asked for anew
            remote = Remote(f"{hub.url}/org/model/resolve/main/nothing.bin")
        with pytest.raises(error) as caught:
            await fetch(hub, tmp_path, wanted(hub, tmp_path, remote=remote))
        assert caught.value.remedy


@pytest.mark.asyncio
async def test_signed_addresses_that_run_out_are_renewed(tmp_path: Path) -> None:
    async with running_hub(make_hub()) as hub:
        hub.faults = [Fault("big.bin", status=403), Fault("big.bin", status=403)]
        await fetch(hub, tmp_path, connections=1)
        assert is_whole(tmp_path)
        assert sum(asked.path.endswith("big.bin") for asked in hub.asked if asked.host == "hub") == 3


@pytest.mark.asyncio
async def test_a_stalled_connection_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    from models_registry.download import downloader

    monkeypatch.setattr(downloader, "_TIMEOUT", aiohttp.ClientTimeout(total=None, sock_read=0.3))
    async with running_hub(make_hub()) as hub:
        hub.faults = [Fault("big.bin", stall_after=1000, times=2)]
        await fetch(hub, tmp_path)
        assert is_whole(tmp_path)


@pytest.mark.asyncio
async def test_a_slow_connection_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_SLOW_AFTER_S", 0.4)
    monkeypatch.setattr(lanes, "LEAST_STOLEN", 10_000_000)  # nobody helps it
    async with running_hub(make_hub()) as hub:
        hub.bytes_per_second = 400_000
        hub.faults = [Fault("big.bin", bytes_per_second=2000)]
        await fetch(hub, tmp_path)
        assert is_whole(tmp_path)
        assert hub.faults[0].times == 0


@pytest.mark.asyncio
async def test_it_stays_below_a_limit_that_may_be_changed(tmp_path: Path) -> None:
    async with running_hub(make_hub()) as hub:
        control = Control(Limit(500_000.0))
        began = time.monotonic()

        def lift(told: Progress) -> None:
            if told.done_bytes > 700_000:
                control.limit.bytes_per_second = None

        await fetch(hub, tmp_path, control=control, progress=lift)
        assert is_whole(tmp_path)
        assert time.monotonic() - began > 0.5  # 0.7 MB at 0.5 MB/s, but for the burst


@pytest.mark.asyncio
async def test_it_is_paused_resumed_and_cancelled_without_loss(tmp_path: Path) -> None:
    async with running_hub(make_hub()) as hub:
        hub.bytes_per_second = 300_000
        control = Control()
        fetching = asyncio.create_task(fetch(hub, tmp_path, control=control))
        while hub.sent["big.bin"] < 200_000:
            await asyncio.sleep(0.02)
        control.paused = True
        while hub.open:
            await asyncio.sleep(0.02)
        before = hub.sent.total()
        await asyncio.sleep(0.5)
        assert hub.sent.total() == before
        control.paused = False
        while hub.sent["big.bin"] < 500_000:
            await asyncio.sleep(0.02)
        control.cancelled = True
        with pytest.raises(ImportCancelled):
            await fetching
        hub.bytes_per_second, kept = 0, hub.sent["big.bin"]
        await fetch(hub, tmp_path)
        assert is_whole(tmp_path)
        assert hub.sent["big.bin"] < len(BIG) + 300_000 + kept - 400_000


@pytest.mark.asyncio
async def test_two_who_want_the_same_share_one_transfer(tmp_path: Path) -> None:
    async with running_hub(make_hub()) as hub:
        hub.bytes_per_second = 2_000_000
        await asyncio.gather(fetch(hub, tmp_path), fetch(hub, tmp_path))
        assert is_whole(tmp_path)
        assert hub.sent["big.bin"] < len(BIG) * 1.5


@pytest.mark.asyncio
async def test_the_second_takes_over_when_the_first_is_cancelled(tmp_path: Path) -> None:
    async with running_hub(make_hub()) as hub:
        hub.bytes_per_second = 300_000
        control = Control()
        first = asyncio.create_task(fetch(hub, tmp_path, control=control))
        while hub.sent["big.bin"] < 100_000:
            await asyncio.sleep(0.02)
        second = asyncio.create_task(fetch(hub, tmp_path))
        await asyncio.sleep(0.3)
        control.cancelled, hub.bytes_per_second = True, 0
        with pytest.raises(ImportCancelled):
            await first
        await second
        assert is_whole(tmp_path)


Usage = namedtuple("Usage", "total used free")


@pytest.mark.asyncio
async def test_without_room_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: Usage(0, 0, 64 << 20))
    async with running_hub(make_hub()) as hub:
        with pytest.raises(NoSpace) as caught:
            await fetch(hub, tmp_path)
        assert "0.00 GB are to be fetched" in caught.value.message or "GB are free" in caught.value.message
        assert not hub.sent
        assert not list(tmp_path.iterdir())


@pytest.mark.asyncio
async def test_a_disk_that_fills_stops_it_and_it_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, written = os.pwrite, 0

    def full(fd: int, data: bytes, at: int) -> int:
        nonlocal written
        written += len(data)
        if 1_000_000 < written < 10**9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, data, at)

    async with running_hub(make_hub()) as hub:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(NoSpace):
            await fetch(hub, tmp_path)
        monkeypatch.setattr(os, "pwrite", pwrite)
        await fetch(hub, tmp_path)
        assert is_whole(tmp_path)
        assert hub.sent["big.bin"] < 2 * len(BIG)


@pytest.mark.asyncio
async def test_a_hundred_thousand_files_would_not_open_a_hundred_thousand(tmp_path: Path) -> None:
    hub = make_hub()
    repo = hub.repos["org/model"]
    many = {f"f{number:04}.txt": HubFile(b"%d" % number) for number in range(600)}
    repo.push(many)
    async with running_hub(hub):
        files = [wanted(hub, tmp_path, path) for path in many]
        most = 0

        def look(_: Progress) -> None:
            nonlocal most
            most = max(most, len(os.listdir("/proc/self/fd")))

        before = len(os.listdir("/proc/self/fd"))
        await fetch(hub, tmp_path, *files, progress=look)
        assert most - before < 200
        assert all((tmp_path / path).read_bytes() == file.content for path, file in many.items())


@pytest.mark.asyncio
async def test_empty_files_are_files(tmp_path: Path) -> None:
    hub = make_hub()
    hub.repos["org/model"].push({"empty": HubFile(b"")})
    async with running_hub(hub):
        await fetch(hub, tmp_path, wanted(hub, tmp_path, "empty"))
        assert (tmp_path / "empty").read_bytes() == b""


# ------------------------------------------------------------------------------------------------ cut anywhere


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.asyncio
async def test_it_goes_on_after_kill_9_wherever_it_was(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with serving_hub(make_hub()) as hub:
        hub.bytes_per_second = 1_500_000
        for _ in range(3):
            process = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path), hub.url], cwd=ROOT)
            await asyncio.sleep(0.8 + chance.random())
            process.send_signal(signal.SIGKILL)
            process.wait()
        hub.bytes_per_second = 0
        await fetch(hub, tmp_path)
        assert is_whole(tmp_path)


_CHILD = """
import asyncio, sys
from pathlib import Path
from models_registry.download import transfer
from models_registry.download.downloader import running
from models_registry.download.remote import Remote
from models_registry.download.transfer import Wanted
transfer.PIECE_BYTES, transfer._CHECKPOINT_S = 300_000, 0.1
async def main():
    remote = Remote(sys.argv[2] + "/org/model/resolve/main/big.bin")
    async with running(4) as downloader:
        await downloader.fetch([Wanted(Path(sys.argv[1]) / "big.bin", 3_000_000, remote, "SHA")])
asyncio.run(main())
""".replace("SHA", hashlib.sha256(BIG).hexdigest())


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 5000),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["write", "write", "write", "note", "kill", "tear", "lose"]),
            st.integers(0, 5000),
            st.integers(1, 900),
        ),
        max_size=40,
    ),
    data=st.randoms(use_true_random=False),
)
def test_whatever_is_cut_the_hash_is_right_in_the_end(
    tmp_path_factory: pytest.TempPathFactory, size: int, steps: list[tuple[str, int, int]], data: random.Random
) -> None:
    """Bytes that came after the last note may be anything after a power cut (`lose`); a torn journal is none."""
    folder, content = tmp_path_factory.mktemp("cut"), data.randbytes(size)
    partial = Partial(folder / "file", size, "id")
    partial.open()
    noted: list[tuple[int, int]] = []
    for what, at, count in steps:
        start, end = min(at, size), min(at + count, size)
        if what == "write" and start < end:
            partial.write(start, content[start:end])
        elif what == "note":
            partial.checkpoint()
            noted = list(partial.spans)
        elif what in ("kill", "lose", "tear"):
            partial.hash_on()
            partial.close()
            part = folder / "file.part"
            if what == "lose":
                kept = bytearray(data.randbytes(size))
                for start, end in noted:
                    kept[start:end] = part.read_bytes()[start:end]
                part.write_bytes(kept)
            elif what == "tear":
                journal = folder / "file.part.json"
                if journal.exists():
                    journal.write_bytes(journal.read_bytes()[: count % 50])
                noted = []
            partial = Partial(folder / "file", size, "id")
            partial.open()
            assert list(partial.spans) == noted
    for start, end in list(partial.spans.missing(size)):
        partial.write(start, content[start:end])
    partial.hash_on()
    assert partial.digest() == hashlib.sha256(content).hexdigest()
    partial.finish(partial.digest())
    assert (folder / "file").read_bytes() == content


def test_a_part_of_another_content_is_thrown_away(tmp_path: Path) -> None:
    first = Partial(tmp_path / "file", 100, "one")
    first.open()
    first.write(0, b"x" * 100)
    first.checkpoint()
    first.close()
    for identity, size in (("two", 100), ("one", 90)):
        other = Partial(tmp_path / "file", size, identity)
        other.open()
        assert other.spans.total == 0
        other.close()
        assert not (tmp_path / "file.part.json").exists()
