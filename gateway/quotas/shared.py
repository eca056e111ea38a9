"""Quotas over all gateway processes: the counters live in Redis (or Valkey), one script decides.

Admissions and settlements of one turn of the event loop go together in one call (`shared.lua`). What this process
holds is mirrored in its own `Ledger`: when Redis is gone, or slower than `DEADLINE_S`, each process goes on with its
share of every limit, and tells Redis what it held and used once it is back. A request that no limit concerns never
waits for Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import msgspec
import orjson
import redis.asyncio as redis
import structlog
from redis.exceptions import RedisError

from gateway.quotas.checks import check_size
from gateway.quotas.ledger import Hold, Ledger
from gateway.quotas.subjects import Ask, LimitKind, Rate, Refusal, Subject, day_number, month_days
from gateway.quotas.windows import Instant, Spent
from wire.feed import Limits

log = structlog.get_logger(__name__)

DEADLINE_S = 0.25
HEARTBEAT_S = 1.0
ALIVE_S = 8
"""A process that is not heard of for so long holds nothing any more."""
_MOST_A_CALL = 256
_UNTIL_SETTLED, _UNTIL_CALENDAR = -3, -2  # waits that the script leaves to us


class Away(Exception):
    """Redis did not answer."""


@dataclass(slots=True)
class _Waiting:
    op: list[Any]
    answer: asyncio.Future[Any] | None


class SharedLedger:
    """As `Ledger`, over all processes of one prefix. `run` is its one task; without it everything is local."""

    def __init__(self, url: str, local: Ledger, *, prefix: str = "stokehold:quota:", alive_s: int = ALIVE_S) -> None:
        """`url`: redis://, rediss:// or unix:// as redis-py takes it. Raises ValueError for another."""
        self._client = redis.from_url(url, socket_connect_timeout=1.0, socket_timeout=1.0, health_check_interval=0)
        source = resources.files("gateway.quotas").joinpath("shared.lua").read_text()
        self._script = self._client.register_script(source)
        self._prefix = prefix
        self._alive_s = alive_s
        self._id = ""
        self._local = local
        self._queue: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._owed: dict[str, Spent] = defaultdict(Spent)
        """Used while nothing could be told, by account."""
        self._rates: dict[str, tuple[Rate | None, Rate | None]] = {}
        self.up = False
        self.processes = 1

    # ---------------------------------------------------------------------------------------- as a Ledger

    def admit(self, subjects: Sequence[Subject], ask: Ask, at: Instant) -> Hold | Awaitable[Hold]:
        """Reserve, or raise Refusal (the awaitable does, too)."""
        counted = [subject for subject in subjects if _is_counted(subject.limits)]
        if not counted:
            return self._local.admit(subjects, ask, at)
        if not self.up:
            return self._admit_here(subjects, ask, at)
        cut = ask
        for subject in subjects:
            cut = check_size(subject, cut)
        return self._admit(subjects, counted, ask, cut, at)

    def settle(self, hold: Hold, used: Spent, at: Instant) -> None:
        """Put what was used in place of what was reserved. A second call does nothing."""
        if hold.settled:
            return
        self._local.settle(hold, used, at)
        if not hold.shared:
            return
        if self.up:
            held, day_and_month = hold.reserved, _calendar(at)
            self._tell(["s", hold.names, held.tokens, held.cost, used.tokens, used.cost, *day_and_month], None)
        else:
            for name in hold.names:
                self._owed[name] += used

    def rates(self, subjects: Sequence[Subject], at: Instant) -> tuple[Rate | None, Rate | None]:
        """(requests, tokens) of the tightest, as last told by Redis; by this process alone while it is gone."""
        if not self.up:
            return self._local.rates(self._shares(subjects, at), at)
        requests: Rate | None = None
        tokens: Rate | None = None
        for subject in subjects:
            of_requests, of_tokens = self._rates.get(subject.name, (None, None))
            requests = _tighter(requests, of_requests)
            tokens = _tighter(tokens, of_tokens)
        return requests, tokens

    # ---------------------------------------------------------------------------------------- its task

    async def run(self) -> None:
        """Keep in touch until cancelled."""
        beat = asyncio.create_task(self._beat())
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    batch, self._queue = self._queue[:_MOST_A_CALL], self._queue[_MOST_A_CALL:]
                    await self._send(batch)
        finally:
            beat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beat
            self._lose()
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(DEADLINE_S):
                    await self._client.delete(f"{self._prefix}proc:{self._id}")
            await self._client.aclose()

    def warnings(self, subjects: Sequence[Subject], at: Instant) -> tuple[str, ...]:
        """By what the master has counted, and this process since."""
        return self._local.warnings(subjects, at)

    # ---------------------------------------------------------------------------------------- with Redis

    def _admit_here(self, subjects: Sequence[Subject], ask: Ask, at: Instant) -> Hold:
        hold = self._local.admit(self._shares(subjects, at), ask, at)
        hold.shared = True
        return hold

    async def _admit(
        self, subjects: Sequence[Subject], counted: Sequence[Subject], ask: Ask, cut: Ask, at: Instant
    ) -> Hold:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._tell(self._admission(counted, cut, at), answer)
        names = [subject.name for subject in counted]
        try:
            told = await asyncio.shield(answer)
        except Away:
            return self._admit_here(subjects, ask, at)
        except asyncio.CancelledError:  # the client has gone: what may still be reserved must come back
            answer.add_done_callback(lambda done: self._return(done, names, at))
            raise
        if not told[0]:
            refusal = _refusal(counted, told, at)
            self._note_refusal(counted[told[1] - 1], refusal)
            raise refusal
        self._note(counted, told[3])
        return self._hold(names, told, ask.prompt_tokens, ask.prompt_tokens + ask.completion_tokens, at)

    def _hold(self, names: list[str], told: list[Any], prompt: int, wanted: int, at: Instant) -> Hold:
        tokens, cost = int(told[1]), int(told[2])
        bound = max(1, tokens - prompt) if tokens < wanted else None
        hold = self._local.take(names, Spent(tokens, cost), bound, at)
        hold.shared = True
        return hold

    def _return(self, done: asyncio.Future[Any], names: list[str], at: Instant) -> None:
        if not (done.cancelled() or done.exception() is not None) and done.result()[0]:
            self.settle(self._hold(names, done.result(), 0, 0, at), Spent(), at)

    def _admission(self, subjects: Sequence[Subject], ask: Ask, at: Instant) -> list[Any]:
        day, month = _calendar(at)
        price = (ask.price.prompt, ask.price.completion) if ask.price is not None else (0, 0)
        about = [self._about(subject, at) for subject in subjects]
        return ["a", ask.prompt_tokens, ask.completion_tokens, int(ask.bounded), *price, day, month, about]

    def _about(self, subject: Subject, at: Instant) -> list[Any]:
        limits, used = subject.limits, subject.used
        today, month, told = day_number(at.unix_s), month_days(at.unix_s), subject.told_day
        base_today = used.tokens_today if told == today else 0
        base_month, base_cost = (used.tokens_this_month, used.cost_this_month) if told in month else (0, 0)
        of_today, of_month = self._local.local(subject.name, at)
        return [
            subject.name,
            _limit(limits.requests_per_minute),
            _limit(limits.tokens_per_minute),
            _limit(limits.parallel_requests),
            _limit(limits.tokens_per_day),
            _limit(limits.tokens_per_month),
            _limit(limits.cost_per_month),
            base_today,
            base_month,
            base_cost,
            base_today + of_today,
            base_month + of_month.tokens,
            base_cost + of_month.cost,
        ]

    def _note(self, subjects: Sequence[Subject], rates: list[Any]) -> None:
        for subject, (requests, requests_s, tokens, tokens_s) in zip(subjects, rates, strict=True):
            rpm, tpm = subject.limits.requests_per_minute, subject.limits.tokens_per_minute
            self._rates[subject.name] = (
                None if rpm is None else Rate(rpm, max(0, rpm - int(requests)), requests_s),
                None if tpm is None else Rate(tpm, max(0, tpm - int(tokens)), tokens_s),
            )

    def _note_refusal(self, subject: Subject, refusal: Refusal) -> None:
        requests, tokens = self._rates.get(subject.name, (None, None))
        found = Rate(refusal.limit, max(0, refusal.limit - refusal.used), refusal.retry_after_s or 60.0)
        if refusal.kind is LimitKind.REQUESTS_PER_MINUTE:
            requests = found
        elif refusal.kind is LimitKind.TOKENS_PER_MINUTE:
            tokens = found
        self._rates[subject.name] = (requests, tokens)

    def _tell(self, op: list[Any], answer: asyncio.Future[Any] | None) -> None:
        self._queue.append(_Waiting(op, answer))
        self._wake.set()

    async def _send(self, batch: list[_Waiting]) -> None:
        try:
            results = await self._call([waiting.op for waiting in batch])
        except Away:
            self._queue = batch + self._queue
            self._lose()
            return
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer is not None and not waiting.answer.done():
                waiting.answer.set_result(result)

    async def _call(self, ops: list[Any]) -> list[Any]:
        try:
            async with asyncio.timeout(DEADLINE_S):
                told = await self._script(args=[self._prefix, self._id, orjson.dumps(ops)])
        except (RedisError, OSError, TimeoutError) as error:
            if self.up:
                log.warning(
                    "quota.shared_counters_lost",
                    error=str(error) or type(error).__name__,
                    remedy="Each gateway process goes on with its share of every limit until Redis answers again.",
                )
            raise Away from error
        results: list[Any] = orjson.loads(told)
        return results

    def _lose(self) -> None:
        """Nothing is shared any more: who waits is told so, what was to be settled is owed."""
        self.up = False
        queue, self._queue = self._queue, []
        for waiting in queue:
            if waiting.answer is not None:
                if not waiting.answer.done():
                    waiting.answer.set_exception(Away())
            elif waiting.op[0] == "s":
                for name in waiting.op[1]:
                    self._owed[name] += Spent(waiting.op[4], waiting.op[5])

    async def _beat(self) -> None:
        """Tell that this process lives, and how many there are; come back after an outage."""
        while True:
            try:
                if not self.up:
                    await self._join()
                async with asyncio.timeout(1.0):
                    await self._beat_once()
            except (RedisError, OSError, TimeoutError, Away):
                if self.up:
                    self._lose()
            await asyncio.sleep(HEARTBEAT_S)

    async def _beat_once(self) -> None:
        now, _ = await self._client.time()
        everybody = f"{self._prefix}procs"
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.set(f"{self._prefix}proc:{self._id}", 1, ex=self._alive_s)
            pipe.zadd(everybody, {self._id: now})
            pipe.zremrangebyscore(everybody, 0, now - self._alive_s)
            pipe.zcard(everybody)
            self.processes = max(1, (await pipe.execute())[-1])

    async def _join(self) -> None:
        """Under a new id: whatever a call that was given up has reserved goes with the old one."""
        self._id = secrets.token_hex(6)
        async with asyncio.timeout(1.0):
            await self._beat_once()
            day, month = _calendar(Instant(0.0, float((await self._client.time())[0])))
        owed, self._owed = self._owed, defaultdict(Spent)
        used = [[name, spent.tokens, spent.cost, day, month] for name, spent in owed.items()]
        held = [[name, parallel, spent.tokens, spent.cost] for name, parallel, spent in self._local.held()]
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # In one turn of the loop: what ends from now on is told behind these two, in the same queue.
        self.up = True
        self._tell(["u", used], None)
        self._tell(["h", held], answer)
        try:
            await answer
        except Away:
            for name, spent in owed.items():
                self._owed[name] += spent
            raise
        log.info("quota.shared_counters", processes=self.processes)

    def _shares(self, subjects: Sequence[Subject], at: Instant) -> list[Subject]:
        return [_share(subject, self.processes, at) for subject in subjects]


def _share(subject: Subject, processes: int, at: Instant) -> Subject:
    """The subject with the part of its limits that one of `processes` may use by itself; at least one of each."""
    if processes == 1:
        return subject
    limits, used, told = subject.limits, subject.used, subject.told_day
    in_month = told in month_days(at.unix_s)
    changes = {
        name: max(1, limit // processes)
        for name in ("requests_per_minute", "tokens_per_minute", "parallel_requests")
        if (limit := getattr(limits, name)) is not None
    }
    for name, base in (
        ("tokens_per_day", used.tokens_today if told == day_number(at.unix_s) else 0),
        ("tokens_per_month", used.tokens_this_month if in_month else 0),
        ("cost_per_month", used.cost_this_month if in_month else 0),
    ):
        if (limit := getattr(limits, name)) is not None:
            changes[name] = base + max(0, limit - base) // processes
    return replace(subject, limits=msgspec.structs.replace(limits, **changes))


def _is_counted(limits: Limits) -> bool:
    """Any limit that is over more than one request."""
    return limits != Limits(max_tokens_per_request=limits.max_tokens_per_request)


def _limit(value: int | None) -> int:
    return -1 if value is None else value


def _calendar(at: Instant) -> tuple[int, int]:
    """(day, month) as the counters are named: both by the number of their first day."""
    return day_number(at.unix_s), month_days(at.unix_s).start


def _refusal(subjects: Sequence[Subject], told: list[Any], at: Instant) -> Refusal:
    _, index, kind, limit, used, wanted, wait = told
    found = LimitKind(kind)
    wait_s: float | None = wait
    if wait == -1:
        wait_s = None
    elif wait in (_UNTIL_SETTLED, _UNTIL_CALENDAR):
        days = month_days(at.unix_s).stop if found is not LimitKind.TOKENS_PER_DAY else day_number(at.unix_s) + 1
        until_s = days * 86400 - at.unix_s
        wait_s = until_s if wait == _UNTIL_CALENDAR else min(until_s, 5.0)
    return Refusal(found, subjects[index - 1].owner, int(limit), int(used), int(wanted), wait_s)


def _tighter(best: Rate | None, other: Rate | None) -> Rate | None:
    if best is None or other is None:
        return best or other
    return best if best.remaining <= other.remaining else other
