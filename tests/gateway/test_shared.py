"""Quotas over many gateway processes, on a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.quotas.ledger import Hold, Ledger
from gateway.quotas.shared import SharedLedger
from gateway.quotas.subjects import Ask, LimitKind, Refusal, Subject
from gateway.quotas.windows import Instant, Spent
from tests.gateway.master import until
from tests.valkey import Valkey, running_valkey
from wire.feed import Limits, Price, Used

pytestmark = pytest.mark.asyncio

SMALL = Ask(10, 10, True)
PRICE = Price(prompt=1_000_000, completion=2_000_000)


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="stk") as folder, running_valkey(Path(folder)) as valkey:
        yield valkey


def now() -> Instant:
    return Instant(time.monotonic(), time.time())


def subject(limits: Limits, name: str, used: Used | None = None) -> tuple[Subject, ...]:
    return (Subject("key", name, limits, used or Used(), time.time()),)


@asynccontextmanager
async def process(server: Valkey, prefix: str, *, alive_s: int = 8) -> AsyncIterator[SharedLedger]:
    """One process's ledger, in touch."""
    ledger = SharedLedger(server.url, Ledger(), prefix=prefix, alive_s=alive_s)
    task = asyncio.create_task(ledger.run())
    try:
        await until(lambda: ledger.up, what="touch with Valkey")
        yield ledger
    finally:
        task.cancel()
        await asyncio.wait({task})


async def admitted(ledger: SharedLedger, subjects: tuple[Subject, ...], ask: Ask = SMALL) -> Hold:
    held = ledger.admit(subjects, ask, now())
    return held if isinstance(held, Hold) else await held


async def refusal(ledger: SharedLedger, subjects: tuple[Subject, ...], ask: Ask = SMALL) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await admitted(ledger, subjects, ask)
    return caught.value


async def test_two_processes_count_together(server: Valkey) -> None:
    limited = subject(Limits(requests_per_minute=10), "key:two")
    async with process(server, "a:") as one, process(server, "a:") as two:
        for ledger in (one, two) * 5:
            ledger.settle(await admitted(ledger, limited), Spent(20), now())
        for ledger in (one, two):
            refused = await refusal(ledger, limited)
            assert (refused.kind, refused.used) == (LimitKind.REQUESTS_PER_MINUTE, 10)
            assert refused.retry_after_s is not None
            assert 50 < refused.retry_after_s <= 61
            requests, _ = ledger.rates(limited, now())
            assert requests is not None
            assert requests.remaining == 0


async def test_five_hundred_at_once_pass_no_limit_by_one(server: Valkey) -> None:
    limited = subject(Limits(requests_per_minute=100, parallel_requests=60, tokens_per_minute=1500), "key:many")
    running = most = used = 0

    async with process(server, "b:") as one, process(server, "b:") as two, process(server, "b:") as three:

        async def client(number: int) -> bool:
            nonlocal running, most, used
            ledger = (one, two, three)[number % 3]
            try:
                hold = await admitted(ledger, limited)
            except Refusal:
                return False
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            tokens = random.Random(number).randint(0, 20)
            used += tokens
            ledger.settle(hold, Spent(tokens), now())
            return True

        taken = sum(await asyncio.gather(*(client(number) for number in range(500))))
        with contextlib.suppress(Refusal):  # what is left is taken, one after the other
            while True:
                one.settle(await admitted(one, limited), Spent(0), now())
                taken += 1
        assert most <= 60
        assert used <= 1500
        assert taken == 100


async def test_it_decides_as_one_process_alone_does(server: Valkey) -> None:
    chance = random.Random(7)
    async with process(server, "c:") as shared:
        for case in range(30):
            limits = Limits(
                requests_per_minute=chance.choice([None, 3, 8]),
                tokens_per_minute=chance.choice([None, 60, 200]),
                parallel_requests=chance.choice([None, 2, 5]),
                tokens_per_day=chance.choice([None, 150, 400]),
                tokens_per_month=chance.choice([None, 200, 500]),
                cost_per_month=chance.choice([None, 200_000, 600_000]),
            )
            used = Used(tokens_today=40, tokens_this_month=60, cost_this_month=50_000)
            subjects = (*subject(limits, f"key:{case}", used), *subject(Limits(parallel_requests=4), f"project:{case}"))
            alone, holds = Ledger(), []
            for _ in range(25):
                ask = Ask(chance.randint(0, 30), chance.randint(0, 40), chance.random() < 0.6, PRICE)
                mine: Hold | LimitKind
                theirs: Hold | LimitKind
                try:
                    mine = alone.admit(subjects, ask, now())
                except Refusal as refused:
                    mine = refused.kind
                try:
                    theirs = await admitted(shared, subjects, ask)
                except Refusal as refused:
                    theirs = refused.kind
                if isinstance(mine, Hold) and isinstance(theirs, Hold):
                    assert (mine.reserved, mine.bound) == (theirs.reserved, theirs.bound)
                    holds.append((mine, theirs))
                else:
                    assert mine == theirs
                if holds and chance.random() < 0.6:
                    one, other = holds.pop(chance.randrange(len(holds)))
                    spent = Spent(chance.randint(0, one.reserved.tokens), chance.randint(0, one.reserved.cost))
                    alone.settle(one, spent, now())
                    shared.settle(other, spent, now())


async def test_what_a_killed_process_held_comes_back(server: Valkey) -> None:
    limited = subject(Limits(parallel_requests=1), "key:killed")
    async with process(server, "d:", alive_s=2) as other:
        killed = SharedLedger(server.url, Ledger(), prefix="d:", alive_s=2)
        task = asyncio.create_task(killed.run())
        await until(lambda: killed.up, what="touch with Valkey")
        await admitted(killed, limited)
        assert (await refusal(other, limited)).kind is LimitKind.PARALLEL
        killed._client.delete = _nothing  # type: ignore[method-assign]  # SIGKILL takes no leave
        task.cancel()
        await asyncio.wait({task})
        assert (await refusal(other, limited)).kind is LimitKind.PARALLEL

        async def freed() -> bool:
            with contextlib.suppress(Refusal):
                other.settle(await admitted(other, limited), Spent(), now())
                return True
            return False

        async with asyncio.timeout(10):
            while not await freed():
                await asyncio.sleep(0.1)


async def _nothing(*names: object) -> int:
    return 0


async def test_a_client_that_leaves_while_it_is_decided_holds_nothing(server: Valkey) -> None:
    limited = subject(Limits(parallel_requests=1), "key:left")
    async with process(server, "e:") as ledger:
        for _ in range(20):
            asking = asyncio.ensure_future(ledger.admit(limited, SMALL, now()))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking})

        async def free() -> bool:
            with contextlib.suppress(Refusal):
                ledger.settle(await admitted(ledger, limited), Spent(), now())
                return True
            return False

        async with asyncio.timeout(5):
            while not await free():
                await asyncio.sleep(0.02)


async def test_without_redis_each_goes_on_with_its_share_and_tells_it_later(tmp_path: Path) -> None:
    limited = subject(Limits(requests_per_minute=10, tokens_per_day=10_000), "key:gone")
    with tempfile.TemporaryDirectory(prefix="stk") as folder, running_valkey(Path(folder)) as valkey:
        async with process(valkey, "f:") as one, process(valkey, "f:") as two:
            await until(lambda: one.processes == two.processes == 2, what="both know of each other")
            running = await admitted(one, limited)
            valkey.kill()
            began = time.monotonic()
            for ledger, count in ((one, 4), (two, 5)):  # half of ten each; one was used before
                for _ in range(count):
                    ledger.settle(await admitted(ledger, limited), Spent(20), now())
                assert (await refusal(ledger, limited)).limit == 5
            assert time.monotonic() - began < 3
            assert not one.up
            valkey.start()
            await until(lambda: one.up and two.up, what="touch again", within_s=10)
            used = subject(Limits(tokens_per_day=230, parallel_requests=1), "key:gone")
            assert (await refusal(two, used)).kind is LimitKind.PARALLEL  # of `running`, told again
            one.settle(running, Spent(20), now())
            await asyncio.sleep(0.1)
            two.settle(await admitted(two, used), Spent(20), now())


async def test_what_no_limit_concerns_never_waits(server: Valkey) -> None:
    async with process(server, "g:") as ledger:
        assert isinstance(ledger.admit((), SMALL, now()), Hold)
        assert isinstance(ledger.admit(subject(Limits(max_tokens_per_request=100), "key:free"), SMALL, now()), Hold)
