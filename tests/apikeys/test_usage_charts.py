"""What the charts of the usage page draw: even axes, the largest shares apart, and the same numbers as a table."""

import datetime as dt

import pytest
from django.contrib.auth.models import User
from django.http import QueryDict
from django.utils import timezone

from apikeys import services, usage
from apikeys.usage import UsageTotal
from apikeys.usage_charts import LARGEST_SHARES, OTHERS, charts
from apikeys.usage_page import asked_of, page_context
from tests.apikeys.factories import make_batch, make_key, make_project, make_row

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def day(number: int, **fields) -> UsageTotal:
    values = {"requests": 2, "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "ttft_ms": 80}
    return UsageTotal(day=dt.date(2026, 3, number), **(values | fields))


def drawn(*rows, split="", step="day", days=3):
    return charts(rows, step=step, split=split, since=START, until=START + dt.timedelta(days=days))


def test_a_day_without_use_is_on_the_axis():
    made = drawn(day(1), day(3)).series
    assert made["labels"] == ["Mar 01", "Mar 02", "Mar 03"]
    assert made["requests"] == [{"label": "Requests", "data": [2, 0, 2]}]


def test_tokens_are_told_apart_by_what_they_are_when_nothing_splits_them():
    made = drawn(day(1, cached_tokens=4)).series["tokens"]
    assert [(one["label"], one["data"][0]) for one in made] == [
        ("prompt, computed", 6),
        ("prompt, from the cache", 4),
        ("completion", 5),
    ]


def test_shares_have_one_order_in_every_chart_the_largest_first():
    made = drawn(day(1, model="small"), day(2, model="large", total_tokens=900), split="model").series
    for name in ("requests", "tokens", "errors", "ttft"):
        assert [one["label"] for one in made[name]] == ["large", "small"], name


def test_shares_beyond_the_colours_are_drawn_as_one_and_told_one_by_one():
    rows = [day(1, model=f"m{number}", total_tokens=100 - number) for number in range(LARGEST_SHARES + 3)]
    made = drawn(*rows, split="model")
    assert len(made.series["requests"]) == LARGEST_SHARES + 1
    assert made.series["requests"][-1] == {"label": OTHERS, "data": [6, 0, 0]}
    assert OTHERS not in [one["label"] for one in made.series["ttft"]]  # a mean of means is none
    assert len(made.table) == len(rows)


def test_keys_of_the_same_name_are_two():
    made = drawn(day(1, key="bot", key_id="aaaaaaaa"), day(1, key="bot", key_id="bbbbbbbb"), split="key").series
    assert [one["label"] for one in made["requests"]] == ["bot (aaaaaaaa)", "bot (bbbbbbbb)"]


def test_time_to_first_token_has_a_gap_where_nothing_was_answered():
    made = drawn(day(1), day(2, requests=3, errors=3, ttft_ms=0)).series["ttft"]
    assert made[0]["data"] == [40, None, None]


def test_hours_say_their_day_when_there_is_more_than_one():
    rows = [UsageTotal(hour=START + dt.timedelta(hours=5), requests=1)]
    assert "Mar 01, 05:00" in drawn(*rows, step="hour", days=2).series["labels"]
    assert drawn(*rows, step="hour", days=1).series["labels"][5] == "05:00"


def test_the_table_has_the_numbers_newest_first():
    made = drawn(day(1), day(3, requests=1200, errors=200, model="x"))
    assert made.heads[:2] == ("When", "Requests")
    assert [line[:2] for line in made.table] == [("Mar 03", "1,200"), ("Mar 01", "2")]


# ------------------------------------------------------------------------------------------------ the page


def page_of(user, address: str = "", now=None):
    query = QueryDict(address)
    return page_context(asked_of(user, query, now or timezone.now()), query)


@pytest.mark.django_db
def test_a_member_sees_the_use_of_their_own_project_only():
    now = timezone.now()
    mine, other = make_key(make_project("mine")), make_key(make_project("other"))
    usage.record_batch(make_batch(make_row(mine, at=now), make_row(other, at=now)), now)
    member = User.objects.create_user("maria", is_staff=True)
    services.set_member(mine.project, member, "member")
    for address in ("", "split=project", f"split=project&project={other.project_id}", f"key={other.pk}&split=key"):
        page = page_of(member, address)
        assert page["whole"].requests == 1, address
        assert "other" not in page["series_json"], address
        assert other.pk not in page["series_json"], address


@pytest.mark.django_db
def test_filters_are_in_the_address_and_what_is_wrong_there_is_left_out(admin):
    now = timezone.now()
    key = make_key()
    usage.record_batch(make_batch(make_row(key, at=now, model="a"), make_row(key, at=now, model="b")), now)
    assert page_of(admin, "model=a&days=1")["whole"].requests == 1
    assert page_of(admin, "days=nonsense&split=planet")["whole"].requests == 2


@pytest.mark.django_db
def test_long_periods_are_never_drawn_by_the_hour(admin):
    assert len(page_of(admin, "days=90&step=hour")["charts"].series["labels"]) == 91
    assert len(page_of(admin, "days=7&step=hour")["charts"].series["labels"]) > 7 * 24


@pytest.mark.django_db
def test_the_page_takes_as_many_queries_for_much_use_as_for_little(admin, django_assert_max_num_queries):
    now = timezone.now()
    for _ in range(12):
        usage.record_batch(make_batch(make_row(make_key(), at=now)), now)
    with django_assert_max_num_queries(7):
        page = page_of(admin, "split=key")
        page["form"].as_p()
