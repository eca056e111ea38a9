"""Batches of many gateways at once, and batches that no database could keep."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from apikeys import usage
from apikeys.models import UsageBatch, UsageHour
from tests.apikeys.factories import HOUR, NOW, make_batch, make_key, make_row


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each gives back, run in threads that start together."""
    ready, results = threading.Barrier(len(works)), []

    def run(work: Callable[[], Any]) -> None:
        try:
            ready.wait(10)
            results.append(work())
        except Exception as error:  # shown by the test's own assertion
            results.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.django_db(transaction=True)
def test_one_batch_that_comes_on_many_links_is_counted_once():
    batch = make_batch(make_row(make_key()))
    results = at_once(*[lambda: usage.record_batch(batch, NOW)] * 6)
    assert sorted(results) == [False] * 5 + [True]
    assert UsageHour.objects.get().requests == 1
    assert UsageBatch.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_batches_of_many_gateways_add_up():
    keys = [make_key() for _ in range(4)]

    def gateway(number: int) -> Callable[[], list[bool]]:
        ordered = keys if number % 2 else keys[::-1]
        batches = [make_batch(*(make_row(key, model=f"m{index % 2}") for key in ordered)) for index in range(8)]
        return lambda: [usage.record_batch(batch, NOW) for batch in batches]

    results = at_once(*(gateway(number) for number in range(4)))
    assert results == [[True] * 8] * 4
    rows = UsageHour.objects.all()
    assert len(rows) == 8
    assert {row.requests for row in rows} == {16}
    assert {row.prompt_tokens for row in rows} == {160}
    for key in keys:
        key.refresh_from_db()
        assert key.last_used_at == HOUR


HOSTILE = {
    "a NUL in the model": {"model": "a\0b"},
    "a lone surrogate in the model": {"model": "a\ud800b"},
    "a very long model": {"model": "x" * 5000},
    "an odd status": {"status": 10**9},
    "a negative status": {"status": -5},
    "tokens beyond 64 bits": {"prompt_tokens": 2**80, "completion_tokens": -7},
    "a NUL in the key": {"key_id": "aaaa\0aaa"},
    "a key that is no key": {"key_id": "'; DROP TABLE"},
    "an hour beyond all dates": {"hour": 2**62},
    "an hour before all dates": {"hour": -(2**62)},
}


@pytest.mark.django_db
@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE)
def test_a_row_that_no_database_could_keep_holds_up_nothing(fields):
    key = make_key()
    batch = make_batch(make_row(key, **fields), make_row(key))
    assert usage.record_batch(batch, NOW) is True
    assert usage.record_batch(batch, NOW) is False
    assert UsageHour.objects.get(model="chat", status=200, hour=HOUR).requests in (1, 2)
    assert usage.used_since(NOW).keys[key.pk].today >= 15


@pytest.mark.parametrize("text", ["\n=1+1", "  =1+1", "\uff1d1+1", "\t=1", "\r=1"])
def test_no_cell_of_the_export_starts_like_a_formula(text):
    line = list(usage.csv_lines([usage.UsageTotal(model=text)]))[1]
    assert f"'{text}" in line
