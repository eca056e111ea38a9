"""Usage is counted exactly once, whatever happens to the process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from gateway.journal import Journal, Record, sum_rows
from wire.feed import UsageBatch

pytestmark = pytest.mark.asyncio


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


async def test_what_was_flushed_survives_and_a_torn_line_does_not_count(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for _ in range(10):
        journal.add(record())
    await journal.step(0.0)
    journal.add(record())  # never flushed: lost with the process
    [path] = tmp_path.glob("*.open")
    with path.open("ab") as file:
        file.write(b'[0,"p","k","m",20')
    after = opened(tmp_path)
    assert requests(after) == 10
    assert list(after.waiting) == [path.stem]
    again = opened(tmp_path)
    assert again.waiting == after.waiting


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

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        journal.add(record())
        await journal.step(1.0)
    await journal.step(2.0)
    await journal.close()
    assert requests(opened(tmp_path)) == 2


async def test_many_waiting_batches_come_back_in_order(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.is_connected = lambda: True
    for number in range(5):
        journal.add(record(number + 1))
        await journal.step(float(number), roll=True)
    assert list(opened(tmp_path).waiting) == list(journal.waiting)
    await asyncio.gather(*(journal.step(10.0) for _ in range(3)))
