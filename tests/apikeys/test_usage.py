"""Usage: counted once, summed right, exported safely."""

import csv
import datetime as dt
import io
import random

import pytest

from apikeys import tasks, usage
from apikeys.errors import InvalidPeriod
from apikeys.models import ApiKey, UsageBatch, UsageHour
from apikeys.signals import usage_recorded
from tests.apikeys.factories import HOUR, NOW, make_batch, make_key, make_project, make_row

pytestmark = pytest.mark.django_db


def test_a_batch_is_counted_once_however_often_it_comes():
    key = make_key()
    batch = make_batch(make_row(key))
    assert usage.record_batch(batch, NOW) is True
    assert usage.record_batch(batch, NOW) is False
    row = UsageHour.objects.get()
    assert (row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens) == (1, 10, 2, 5)
    assert (row.duration_ms, row.ttft_ms, row.hour, row.project_id) == (100, 20, HOUR, key.project_id)


def test_batches_of_one_hour_add_up():
    key = make_key()
    for _ in range(3):
        usage.record_batch(make_batch(make_row(key), make_row(key, prompt_tokens=1)), NOW)
    row = UsageHour.objects.get()
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (6, 33, 30)


def test_models_hours_keys_and_statuses_are_kept_apart():
    key, other = make_key(), make_key()
    rows = (
        make_row(key),
        make_row(key, model="other"),
        make_row(key, status=499),
        make_row(key, at=HOUR - dt.timedelta(hours=1)),
        make_row(other),
    )
    usage.record_batch(make_batch(*rows), NOW)
    usage.record_batch(make_batch(*rows), NOW)
    assert list(UsageHour.objects.values_list("requests", flat=True)) == [2] * 5


def test_a_large_batch_is_summed_exactly_in_few_queries(django_assert_max_num_queries):
    numbers = random.Random(3)
    keys = [make_key() for _ in range(20)]
    rows = [
        make_row(
            numbers.choice(keys),
            model=f"m{numbers.randrange(10)}",
            status=numbers.choice([200, 429]),
            prompt_tokens=numbers.randrange(10**6),
        )
        for _ in range(1500)
    ]
    with django_assert_max_num_queries(40):
        usage.record_batch(make_batch(*rows), NOW)
    (total,) = usage.totals(by=())
    assert total.requests == 1500
    assert total.prompt_tokens == sum(row.prompt_tokens for row in rows)
    for key in keys:
        (total,) = usage.totals(by=(), key=key)
        assert total.prompt_tokens == sum(row.prompt_tokens for row in rows if row.key_id == key.pk)


def test_rows_of_a_key_that_is_gone_do_not_hold_up_the_rest():
    key = make_key()
    batch = make_batch(make_row("goneaway"), make_row(key))
    assert usage.record_batch(batch, NOW) is True
    assert UsageHour.objects.get().key_id == key.pk
    assert usage.record_batch(make_batch(make_row("goneaway")), NOW) is True
    assert usage.record_batch(make_batch(), NOW) is True


def test_usage_belongs_to_the_project_of_the_key_not_to_what_the_gateway_says():
    key = make_key()
    usage.record_batch(make_batch(make_row(key, project_id=str(make_project().pk))), NOW)
    assert UsageHour.objects.get().project_id == key.project_id


def test_when_a_key_was_last_used_never_goes_back():
    key = make_key()
    earlier = HOUR - dt.timedelta(hours=3)
    before = ApiKey.objects.get().updated_at
    for at in (earlier, HOUR, earlier):
        usage.record_batch(make_batch(make_row(key, at=at)), NOW)
    key.refresh_from_db()
    assert key.last_used_at == HOUR
    assert key.updated_at == before


def test_a_failure_half_way_counts_nothing(monkeypatch):
    key = make_key()
    batch = make_batch(make_row(key))

    def fail(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(usage, "_mark_used", fail)
        with pytest.raises(RuntimeError):
            usage.record_batch(batch, NOW)
    assert not UsageHour.objects.exists()
    assert usage.record_batch(batch, NOW) is True


def test_a_counted_batch_is_announced_after_commit(django_capture_on_commit_callbacks):
    seen: list[frozenset[str]] = []

    def note(key_ids: frozenset[str], **_: object) -> None:
        seen.append(key_ids)

    key = make_key()
    usage_recorded.connect(note)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            usage.record_batch(make_batch(make_row(key)), NOW)
            assert seen == []
    finally:
        usage_recorded.disconnect(note)
    assert seen == [frozenset({key.pk})]


def test_the_day_and_month_of_a_quota_are_utc_ones(django_assert_num_queries):
    key, other = make_key(), make_key()
    for at in (NOW, HOUR.replace(hour=0), HOUR.replace(hour=0) - dt.timedelta(hours=1)):
        usage.record_batch(make_batch(make_row(key, at=at)), NOW)
    usage.record_batch(make_batch(make_row(other, at=HOUR.replace(day=1, hour=0) - dt.timedelta(hours=1))), NOW)
    elsewhere = NOW.astimezone(dt.timezone(dt.timedelta(hours=-13)))  # still the day before there
    with django_assert_num_queries(1):
        used = usage.used_since(elsewhere)
    assert used.keys == {key.pk: usage.UsedUp(today=30, month=45)}
    assert used.projects == {key.project_id: usage.UsedUp(today=30, month=45)}


def test_usage_is_summed_by_what_is_asked_in_one_query(django_assert_num_queries):
    project = make_project("team")
    key, other = make_key(project, name="a"), make_key(name="b")
    yesterday = HOUR - dt.timedelta(days=1)
    usage.record_batch(
        make_batch(make_row(key), make_row(key, status=500), make_row(key, at=yesterday), make_row(other, model="x")),
        NOW,
    )
    with django_assert_num_queries(1):
        days = usage.totals(by="day")
    assert [(total.day, total.requests, total.errors) for total in days] == [
        (yesterday.date(), 1, 0),
        (HOUR.date(), 3, 1),
    ]
    with django_assert_num_queries(1):
        keys = usage.totals(by=("project", "key"), since=HOUR)
    assert {(total.project, total.key, total.requests) for total in keys} == {
        ("team", "a", 2),
        (other.project.name, "b", 1),
    }
    assert [total.model for total in usage.totals(by="model")] == ["chat", "x"]
    assert [total.hour for total in usage.totals(by="hour", project=project)] == [yesterday, HOUR]
    (total,) = usage.totals(by=(), key=key, until=HOUR)
    assert (total.requests, total.total_tokens) == (1, 15)
    (nothing,) = usage.totals(by=(), model="unknown")
    assert (nothing.requests, nothing.total_tokens) == (0, 0)


def test_a_period_must_run_forward_and_groups_be_known():
    with pytest.raises(InvalidPeriod):
        usage.totals(since=NOW, until=NOW)
    with pytest.raises(InvalidPeriod, match="colour"):
        usage.totals(by="colour")


def test_the_export_is_plain_csv_without_formulas():
    evil = '=HYPERLINK("http://x","y")'
    key = make_key(name=evil)
    for model in ("+1", "-2", "@SUM(A1)", 'say "hi", then leave', "chat"):
        usage.record_batch(make_batch(make_row(key, model=model)), NOW)
    text = "".join(usage.csv_lines(usage.totals(by=("hour", "key", "model"))))
    assert text.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {row["key"] for row in rows} == {f"'{evil}"}
    assert {row["model"] for row in rows} == {"'+1", "'-2", "'@SUM(A1)", 'say "hi", then leave', "chat"}
    assert {(row["hour"], row["day"], row["requests"]) for row in rows} == {("2026-03-05T12:00:00+00:00", "", "1")}


def test_ids_of_old_batches_are_forgotten_their_sums_stay(monkeypatch):
    key = make_key()
    usage.record_batch(make_batch(make_row(key), batch_id="old"), NOW - dt.timedelta(days=31))
    usage.record_batch(make_batch(make_row(key), batch_id="new"), NOW)
    monkeypatch.setattr(tasks.timezone, "now", lambda: NOW)
    tasks.delete_old_batches()
    assert list(UsageBatch.objects.values_list("pk", flat=True)) == ["new"]
    assert UsageHour.objects.get().requests == 2
    assert {entry["task"] for entry in tasks.BEAT.values()} == {
        tasks.delete_old_batches.name,
        tasks.warn_of_quotas.name,
    }
