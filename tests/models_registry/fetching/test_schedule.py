"""Bandwidth schedules: how they are written, and what holds when."""

from __future__ import annotations

import datetime as dt

import pytest

from models_registry.errors import BadSchedule
from models_registry.fetching.policy import limit_at, policy, set_policy
from models_registry.fetching.schedule import parse

MONDAY = dt.datetime(2026, 3, 2)
NIGHTS = "22:00-06:00 unlimited, else 50 MB/s"


@pytest.mark.parametrize(
    ("text", "day", "clock", "rate"),
    [
        ("", 0, "12:00", None),
        ("unlimited", 0, "12:00", None),
        ("5 MB/s", 0, "12:00", 5e6),
        (NIGHTS, 0, "21:59", 5e7),
        (NIGHTS, 0, "22:00", None),
        (NIGHTS, 1, "05:59", None),
        (NIGHTS, 1, "06:00", 5e7),
        ("mon-fri 08:00-18:00 20 mb/s, else 1.5 GB/s", 4, "08:00", 2e7),
        ("mon-fri 08:00-18:00 20 mb/s, else 1.5 GB/s", 5, "08:00", 1.5e9),
        ("fri-mon 00:00-24:00 1 MB/s", 6, "12:00", 1e6),
        ("fri-mon 00:00-24:00 1 MB/s", 2, "12:00", None),
        ("sun 23:00-01:00 800 KB/s", 0, "00:30", 8e5),
        ("sun 23:00-01:00 800 KB/s", 1, "00:30", None),
        ("08:00-12:00 1 MB/s, 10:00-18:00 2 MB/s", 0, "11:00", 1e6),
    ],
)
def test_the_first_window_that_has_the_moment_decides(text: str, day: int, clock: str, rate: float | None) -> None:
    moment = dt.datetime.combine(MONDAY + dt.timedelta(days=day), dt.time.fromisoformat(clock))
    assert parse(text).rate_at(moment) == rate


@pytest.mark.parametrize(
    "text",
    [
        "fast",
        "25:00-26:00 1 MB/s",
        "08:00-08:00 1 MB/s",
        "08:00-18:00",
        "08:00-18:00 0 MB/s",
        "08:00-18:00 5 MB",
        "else 1 MB/s, 08:00-18:00 2 MB/s",
        "xyz 08:00-18:00 2 MB/s",
    ],
)
def test_what_cannot_be_read_is_said(text: str) -> None:
    with pytest.raises(BadSchedule):
        parse(text)


@pytest.mark.django_db
def test_the_clock_is_that_of_the_zone() -> None:
    assert limit_at(dt.datetime.now(dt.UTC)) is None
    set_policy(NIGHTS, "Asia/Tokyo")
    assert limit_at(dt.datetime(2026, 3, 2, 13, 0, tzinfo=dt.UTC)) is None  # 22:00 there
    assert limit_at(dt.datetime(2026, 3, 2, 12, 0, tzinfo=dt.UTC)) == 5e7
    set_policy("", "")
    assert (policy().schedule, policy().zone) == ("", "UTC")
    for zone in ("Nowhere/Land", "../etc/passwd", "x" * 300):
        with pytest.raises(BadSchedule):
            set_policy(NIGHTS, zone)
