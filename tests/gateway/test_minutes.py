"""The minute's counts outlive the process to the request, whenever it is killed."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from gateway.quotas.ledger import Hold, Ledger
from gateway.quotas.minutes import Minutes
from gateway.quotas.subjects import Ask, Subject, key_account, project_account
from gateway.quotas.windows import Instant, Spent
from gateway.usage.journal import Journal
from gateway.usage.records import Record
from wire.feed import Limits, Used

pytestmark = pytest.mark.asyncio
LIMITS = Limits(requests_per_minute=10**6, tokens_per_minute=10**9)
SUBJECTS = tuple(Subject("key", name, LIMITS, Used(), 0.0) for name in (key_account("k"), project_account("p")))


class Process:
    """A gateway's ledger, journal and minutes in one folder; may be dropped at any moment, as by kill -9."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger()
        self.journal = Journal(folder / "journal")
        minutes = Minutes(folder / "minutes.json", self.ledger)
        minutes.load(folder / "journal")
        self.journal.keep = minutes.keep
        self.journal.is_connected = lambda: True
        self.journal.recover()
        self.running: list[tuple[Hold, str]] = []

    def begin(self) -> None:
        hold = self.ledger.admit(SUBJECTS, Ask(7, 5, True), now())
        self.running.append((hold, self.journal.begin(time.time(), record(500, 7, 0, ""))))

    def end(self, tokens: int) -> None:
        hold, begun = self.running.pop(0)
        self.ledger.settle(hold, Spent(7 + tokens), now())
        self.journal.add(record(200, 7, tokens, begun))

    def counted(self) -> tuple[int, int]:
        """(requests, tokens) of the last minute; the same for both subjects."""
        requests, tokens = self.ledger.rates(SUBJECTS[:1], now())
        assert (requests, tokens) is not None
        assert [rate and rate.remaining for rate in self.ledger.rates(SUBJECTS[1:], now())] == [
            rate and rate.remaining for rate in (requests, tokens)
        ]
        assert requests is not None
        assert tokens is not None
        return requests.limit - requests.remaining, tokens.limit - tokens.remaining


def record(status: int, prompt: int, completion: int, begun: str) -> Record:
    return Record(0, "p", "k", "m", status, prompt, 0, completion, 10, 5, 0, begun)


def now() -> Instant:
    return Instant(time.monotonic(), time.time())


@pytest.mark.parametrize("seed", range(12))
async def test_kill_9_forgets_no_request_and_no_token(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    (tmp_path / "journal").mkdir()
    process = Process(tmp_path)
    await process.journal.step(0.0)
    requests = tokens = 0
    for _ in range(6):
        for _ in range(chance.randint(0, 30)):
            step = chance.random()
            if step < 0.5:
                process.begin()
                requests += 1
            elif step < 0.85 and process.running:
                made = chance.randint(0, 50)
                process.end(made)
                tokens += 7 + made
            else:
                await process.journal.step(chance.random() * 1e9, roll=chance.random() < 0.5)
        reserved = 12 * len(process.running)
        assert process.counted() == (requests, tokens + reserved)
        tokens += 7 * len(process.running)  # what an engine worked on counts its prompt
        process = Process(tmp_path)
        assert process.counted() == (requests, tokens)
        await process.journal.step(0.0)


async def test_a_second_kill_during_the_start_forgets_nothing(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    process = Process(tmp_path)
    await process.journal.step(0.0)
    process.begin()
    process.begin()
    process.end(3)
    counted = (2, 10 + 7)
    assert Process(tmp_path).counted() == counted  # which has made batches of the files
    assert Process(tmp_path).counted() == counted
    shutil.rmtree(tmp_path / "journal")
    (tmp_path / "journal").mkdir()
    assert Process(tmp_path).counted() == counted


async def test_a_clean_end_forgets_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    process = Process(tmp_path)
    await process.journal.step(0.0)
    process.begin()
    process.end(3)
    await process.journal.step(0.0, roll=True)
    process.begin()
    process.end(1)
    await process.journal.close()
    assert Process(tmp_path).counted() == (2, 18)


async def test_what_is_older_than_a_minute_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    process = Process(tmp_path)
    await process.journal.step(0.0)
    process.journal.begin(time.time() - 70, record(500, 7, 0, ""))
    process.begin()
    assert Process(tmp_path).counted() == (1, 7)


@pytest.mark.parametrize("data", [b"", b"{", b'{"accounts":3}', b'{"key:k":[[[1,2]],[]]}'])
async def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "minutes.json").write_bytes(data)
    assert Process(tmp_path).counted() == (0, 0)
