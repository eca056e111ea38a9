"""Quotas as values: what is admitted, what is refused, and what no order of events can break."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.quotas.ledger import Hold, Ledger
from gateway.quotas.subjects import SETTLING_S, Ask, LimitKind, Refusal, Subject, day_number, month_days
from gateway.quotas.windows import Instant, Spent, Window
from wire.feed import Limits, UsageRow, Used

NOON = dt.datetime(2026, 3, 31, 12, tzinfo=dt.UTC).timestamp()


def at(seconds: float) -> Instant:
    return Instant(1000.0 + seconds, NOON + seconds)


Subjects = tuple[Subject, ...]


def entries(key: Limits | None = None, project: Limits | None = None, used: Used | None = None) -> Subjects:
    """Subjects of one key and its project."""
    return (
        Subject("key", "key:k", key or Limits(), used or Used(), NOON),
        Subject("project", "project:p1", project or Limits(), Used(), NOON),
    )


def refusal(ledger: Ledger, pair: Subjects, ask: Ask, now: Instant) -> Refusal:
    with pytest.raises(Refusal) as caught:
        ledger.admit(pair, ask, now)
    return caught.value


SMALL = Ask(10, 10, True)


def test_the_sixth_of_five_requests_a_minute_waits_for_the_first_to_leave() -> None:
    ledger, pair = Ledger(), entries(Limits(requests_per_minute=5))
    for second in range(5):
        ledger.settle(ledger.admit(pair, SMALL, at(second)), Spent(20), at(second))
    refused = refusal(ledger, pair, SMALL, at(5))
    assert (refused.kind, refused.owner) == (LimitKind.REQUESTS_PER_MINUTE, "key")
    assert refused.retry_after_s is not None
    ledger.admit(pair, SMALL, at(5 + refused.retry_after_s))


def test_a_limit_of_the_project_holds_for_all_its_keys() -> None:
    ledger = Ledger()
    limits = Limits(parallel_requests=2)
    first, second = entries(project=limits), entries(project=limits)
    hold = ledger.admit(first, SMALL, at(0))
    ledger.admit(second, SMALL, at(0))
    assert refusal(ledger, first, SMALL, at(0)).owner == "project"
    ledger.settle(hold, Spent(0), at(1))
    ledger.admit(second, SMALL, at(1))


def test_a_refused_request_changes_nothing() -> None:
    ledger, pair = Ledger(), entries(Limits(requests_per_minute=10), Limits(parallel_requests=0))
    for _ in range(20):
        assert refusal(ledger, pair, SMALL, at(0)).kind is LimitKind.PARALLEL
    requests, _ = ledger.rates(pair, at(0))
    assert requests is not None
    assert requests.remaining == 10


def test_tokens_are_reserved_and_the_rest_comes_back() -> None:
    ledger, pair = Ledger(), entries(Limits(tokens_per_minute=100))
    hold = ledger.admit(pair, Ask(10, 80, True), at(0))
    assert refusal(ledger, pair, SMALL, at(1)).kind is LimitKind.TOKENS_PER_MINUTE
    ledger.settle(hold, Spent(20), at(2))
    ledger.settle(hold, Spent(20), at(2))
    _, tokens = ledger.rates(pair, at(2))
    assert tokens is not None
    assert tokens.remaining == 80
    ledger.admit(pair, Ask(10, 70, True), at(2))


def test_more_than_the_whole_limit_is_never_admitted_and_says_so() -> None:
    ledger, pair = Ledger(), entries(Limits(tokens_per_minute=100))
    assert refusal(ledger, pair, Ask(50, 60, True), at(0)).retry_after_s is None


def test_a_guessed_answer_is_cut_to_what_is_left_of_the_day() -> None:
    ledger, pair = Ledger(), entries(Limits(tokens_per_day=1000), used=Used(tokens_today=900))
    hold = ledger.admit(pair, Ask(10, 512, False), at(0))
    assert hold.reserved.tokens == 100
    refused = refusal(ledger, pair, Ask(10, 512, False), at(0))
    assert (refused.kind, refused.retry_after_s) == (LimitKind.TOKENS_PER_DAY, SETTLING_S), "its rest comes back"


def test_a_new_day_starts_at_zero_even_when_the_master_is_away() -> None:
    ledger, pair = Ledger(), entries(Limits(tokens_per_day=100, tokens_per_month=500), used=Used(tokens_today=100))
    refusal(ledger, pair, SMALL, at(0))
    ledger.settle(ledger.admit(pair, SMALL, at(12 * 3600)), Spent(20), at(12 * 3600))


def test_a_month_counts_what_the_master_knows_and_what_it_does_not_yet() -> None:
    ledger, pair = Ledger(), entries(Limits(tokens_per_month=100), used=Used(tokens_this_month=50))
    ledger.settle(ledger.admit(pair, Ask(10, 20, True), at(0)), Spent(30), at(0))
    assert refusal(ledger, pair, Ask(10, 11, True), at(1)).used == 80


def row(tokens: int) -> UsageRow:
    return UsageRow(
        hour=int(NOON) // 3600 * 3600,
        project_id="p1",
        key_id="k",
        model="m",
        status=200,
        requests=1,
        prompt_tokens=tokens,
        cached_tokens=0,
        completion_tokens=0,
        duration_ms=0,
        ttft_ms=0,
    )


def test_acknowledged_tokens_count_until_the_masters_new_total_is_here() -> None:
    ledger, pair = Ledger(), entries(Limits(tokens_per_day=100))
    ledger.settle(ledger.admit(pair, Ask(90, 0, True), at(0)), Spent(90), at(0))
    ledger.acknowledge([row(90)], at(1))
    assert refusal(ledger, pair, SMALL, at(1)).used == 90
    ledger.rebase(["key:k", "project:p1"])
    newer = entries(Limits(tokens_per_day=100), used=Used(tokens_today=90))
    assert refusal(ledger, newer, SMALL, at(2)).used == 90


def test_tokens_found_in_the_journal_count() -> None:
    ledger, pair = Ledger(), entries(Limits(tokens_per_day=100))
    ledger.restore([row(95)])
    assert refusal(ledger, pair, SMALL, at(0)).used == 95


def test_months_are_calendar_months() -> None:
    march = month_days(NOON)
    assert day_number(NOON) in march
    assert day_number(NOON + 86400) not in march
    assert len(march) == 31


LIMITS = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(0, 6),
    tokens_per_minute=st.none() | st.integers(0, 200),
    parallel_requests=st.none() | st.integers(0, 3),
    tokens_per_day=st.none() | st.integers(0, 600),
    tokens_per_month=st.none() | st.integers(0, 800),
)
STEPS = st.lists(
    st.tuples(st.floats(0, 20), st.integers(0, 60), st.integers(0, 60), st.floats(0, 1), st.booleans()), max_size=60
)


def most_in_a_minute(events: Iterable[tuple[float, int]]) -> int:
    events = sorted(events)
    return max((sum(n for t, n in events if start <= t < start + 60) for start, _ in events), default=0)


@settings(max_examples=150, deadline=None)
@given(LIMITS, LIMITS, STEPS)
def test_no_limit_is_ever_passed_whatever_comes_and_ends_when(key: Limits, project: Limits, steps: list) -> None:  # type: ignore[type-arg]
    ledger, pair = Ledger(), entries(key, project)
    now, admitted, used = 0.0, [], []
    running: list[tuple[Hold, int]] = []
    for pause, prompt, completion, share, ends in steps:
        now += pause
        try:
            hold = ledger.admit(pair, Ask(prompt, completion, True), at(now))
            admitted.append((now, 1))
            running.append((hold, int((prompt + completion) * share)))
        except Refusal:
            pass
        if ends and running:
            hold, tokens = running.pop(0)
            ledger.settle(hold, Spent(tokens), at(now))
            used.append((now, tokens))
        for limits in (key, project):
            if limits.parallel_requests is not None:
                assert len(running) <= limits.parallel_requests
            if limits.requests_per_minute is not None:
                assert most_in_a_minute(admitted) <= limits.requests_per_minute
            if limits.tokens_per_minute is not None:
                assert most_in_a_minute(used) <= limits.tokens_per_minute
            for limit in (limits.tokens_per_day, limits.tokens_per_month):
                assert limit is None or sum(tokens for _, tokens in used) <= limit
        for account in running[0][0].accounts if running else ():
            assert account.parallel == len(running)
            assert account.reserved.tokens == sum(hold.reserved.tokens for hold, _ in running)
    for hold, tokens in running:
        ledger.settle(hold, Spent(tokens), at(now))
        assert all(account.parallel >= 0 and account.reserved.tokens >= 0 for account in hold.accounts)
    if running:
        assert all(account.parallel == 0 and account.reserved == Spent() for account in running[-1][0].accounts)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), min_size=1, max_size=50))
def test_a_window_holds_everything_of_the_last_minute(steps: list) -> None:  # type: ignore[type-arg]
    window, now, events = Window(), 0.0, []
    for pause, amount in steps:
        now += pause
        window.expire(now)
        window.add(amount, now)
        events.append((now, amount))
        assert window.total >= sum(n for t, n in events if t > now - 60)
        assert window.total <= sum(n for t, n in events if t > now - 62)
    wait = window.frees_in(window.total, now)
    window.expire(now + wait)
    assert window.total == 0
