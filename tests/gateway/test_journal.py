"""Usage is counted exactly once, whatever happens to the process."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.usage.journal import Journal
from gateway.usage.openfile import EXTENT_BYTES
from gateway.usage.records import Record, sum_rows
from wire.feed import UsageBatch

pytestmark = pytest.mark.asyncio
NOW = 1_800_000_000.0


def record(tokens: int = 1, key: str = "k", hour: int = 0) -> Record:
    return Record(hour, "p", key, "m", 200, tokens, 0, tokens, 10, 5)


def opened(folder: Path) -> Journal:
    journal = Journal(folder)
    journal.recover()
    return journal


def requests(journal: Journal) -> int:
    return sum(row.requests for batch in journal.waiting.values() for row in batch.rows)


async def test_rows_are_summed_by_hour_project_key_model_and_status() -> None:
    rows = sum_rows([record(2), record(3), record(1, key="other"), record(1, hour=3600)])
    assert sorted((row.hour, row.key_id, row.requests, row.prompt_tokens) for row in rows) == [
        (0, "k", 2, 5),
        (0, "other", 1, 1),
        (3600, "k", 1, 1),
    ]


async def test_kill_9_loses_nothing_and_a_torn_line_does_not_count(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.step(0.0)
    for _ in range(10):
        journal.add(record())  # from here on in the kernel's hands: no step follows
    [path] = tmp_path.glob("*.open")
    lines = path.read_bytes().rstrip(b"\0")
    assert lines.count(b"\n") == 10
    path.write_bytes(lines + b'[0,"p","k","m",20' + b"\0" * 100)
    after = opened(tmp_path)
    assert requests(after) == 10
    assert list(after.waiting) == [path.stem]
    again = opened(tmp_path)
    assert again.waiting == after.waiting


def statuses(journal: Journal) -> Counter[int]:
    found: Counter[int] = Counter()
    for batch in journal.waiting.values():
        for row in batch.rows:
            found[row.status] += row.requests
    return found


async def test_what_was_at_an_engine_counts_when_the_process_dies(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.step(0.0)
    begun = [journal.begin(NOW, record()._replace(status=500)) for _ in range(5)]
    for name in begun[:3]:
        journal.add(record()._replace(begun=name))
    assert statuses(opened(tmp_path)) == {200: 3, 500: 2}


async def test_what_is_at_an_engine_while_a_batch_is_rolled_counts_once(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.step(0.0)
    ends, dies = journal.begin(NOW, record()._replace(status=500)), journal.begin(NOW, record()._replace(status=500))
    journal.add(record())
    [old] = tmp_path.glob("*.open")
    lines = old.read_bytes()
    await journal.step(0.0, roll=True)
    journal.add(record()._replace(begun=ends))
    assert dies
    old.write_bytes(lines)  # as if it had died before it dropped the file
    assert statuses(opened(tmp_path)) == {200: 2, 500: 1}
    old.write_bytes(lines)  # and died again while it took that up
    assert statuses(opened(tmp_path)) == {200: 2, 500: 1}


@given(st.lists(st.sampled_from(["begin", "end", "add", "step", "roll", "die", "cut"]), max_size=40))
async def test_each_request_is_counted_once_whatever_happens_and_when(steps: list[str]) -> None:
    with TemporaryDirectory() as name:
        folder, told, running, before = Path(name), 0, list[str](), dict[Path, bytes]()
        journal = opened(folder)
        for number, step in enumerate(steps):
            if step == "begin":
                running.append(journal.begin(NOW, record()._replace(status=500)))
                told += 1
            elif step == "end" and running:
                journal.add(record()._replace(begun=running.pop(len(running) // 2)))
            elif step == "add":
                journal.add(record())
                told += 1
            elif step in ("step", "roll"):
                before = {path: path.read_bytes() for path in folder.glob("*.open")}
                await journal.step(float(number), roll=step == "roll")
            elif step in ("die", "cut"):
                await journal.step(float(number))  # a file there is from the first moment on, as `run` makes it
                if step == "cut":  # the last step has not dropped its file
                    for path, data in before.items():
                        path.write_bytes(data) if not path.exists() else None
                journal, running, before = opened(folder), [], {}
        await journal.step(1000.0)
        assert requests(opened(folder)) == told


async def test_a_batch_keeps_its_id_and_rows_until_it_is_acknowledged(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    sent: list[UsageBatch] = []
    journal.on_batch, journal.is_connected = sent.append, lambda: True
    journal.add(record(7))
    await journal.step(0.0)
    await journal.step(2.0)
    assert [batch.rows[0].prompt_tokens for batch in sent] == [7]
    assert opened(tmp_path).waiting == {sent[0].batch_id: sent[0]}
    assert journal.acknowledge(sent[0].batch_id) == sent[0]
    assert journal.acknowledge(sent[0].batch_id) is None
    await journal.close()
    assert not list(tmp_path.iterdir())


async def test_a_process_that_dies_between_rolling_and_dropping_counts_once(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.add(record())
    await journal.step(0.0)
    [path] = tmp_path.glob("*.open")
    lines = path.read_bytes()
    await journal.step(0.0, roll=True)
    path.write_bytes(lines)  # as if it had died before it dropped the file
    assert requests(opened(tmp_path)) == 1
    assert not path.exists()


async def test_while_the_master_is_away_usage_is_summed_not_piled_up(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for second in range(100):
        journal.add(record())
        await journal.step(float(second))
    assert len(list(tmp_path.iterdir())) == 1
    journal.is_connected = lambda: True
    await journal.step(200.0)
    [batch] = journal.waiting.values()
    assert [row.requests for row in batch.rows] == [100]


async def test_a_disk_that_refuses_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path)
    journal.add(record())
    await journal.step(0.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        journal.add(record())
        await journal.step(1.0, roll=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(Path, "replace", full)
        journal.add(record())
        await journal.step(1.0, roll=True)
    await journal.step(2.0)
    await journal.close()
    assert requests(opened(tmp_path)) == 3


async def test_many_waiting_batches_come_back_in_order(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.is_connected = lambda: True
    for number in range(5):
        journal.add(record(number + 1))
        await journal.step(float(number), roll=True)
    assert list(opened(tmp_path).waiting) == list(journal.waiting)
    await asyncio.gather(*(journal.step(10.0) for _ in range(3)))


async def test_more_than_there_is_room_for_waits_for_the_next_step(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.step(0.0)
    count = 3 * EXTENT_BYTES // 50
    for _ in range(count):
        journal.add(record())
    for _ in range(20):
        await journal.step(0.0)
    assert requests(opened(tmp_path)) == count
