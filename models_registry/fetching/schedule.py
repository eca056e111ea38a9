"""How fast this installation may fetch, by the time of day: `22:00-06:00 unlimited, else 50 MB/s`. Pure."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

from models_registry.errors import BadSchedule

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MOST_BYTES_PER_SECOND = 10**15
"""No line is as fast."""
_UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9}
_WINDOW = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?\s+)?(?P<start>\d{1,2}:\d\d)\s*-\s*(?P<end>\d{1,2}:\d\d)\s+(?P<rate>.+)"
)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(kb|mb|gb)/s")


@dataclass(frozen=True)
class Window:
    """A part of the day, on some days (0 is Monday). One that ends before it starts goes on into the next day."""

    days: frozenset[int]
    start: dt.time
    end: dt.time
    bytes_per_second: float | None

    def has(self, moment: dt.datetime) -> bool:
        day, clock = moment.weekday(), moment.time()
        if self.start < self.end:
            return day in self.days and self.start <= clock < self.end
        return (day in self.days and clock >= self.start) or ((day - 1) % 7 in self.days and clock < self.end)


@dataclass(frozen=True)
class Schedule:
    """The first window that has the moment decides, else `otherwise`. Rates in bytes a second, None: no limit."""

    windows: tuple[Window, ...] = ()
    otherwise: float | None = None

    def rate_at(self, moment: dt.datetime) -> float | None:
        """`moment` as the clock on the wall shows it."""
        return next((one.bytes_per_second for one in self.windows if one.has(moment)), self.otherwise)


def parse(text: str) -> Schedule:
    """Raises BadSchedule. An empty text is no limit at any time."""
    windows: list[Window] = []
    otherwise: float | None = None
    parts = [part.strip() for part in text.lower().split(",") if part.strip()]
    for number, part in enumerate(parts):
        if part.startswith("else ") or (len(parts) == 1 and part[0].isalnum() and _is_rate(part)):
            if number != len(parts) - 1:
                raise BadSchedule("`else` is for the rest of the time: it comes last.")
            otherwise = _rate(part.removeprefix("else ").strip())
        else:
            windows.append(_window(part))
    return Schedule(tuple(windows), otherwise)


def _window(text: str) -> Window:
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise BadSchedule(f"{text!r} is no part of a schedule.")
    start, end = _clock(match["start"]), _clock(match["end"])
    if match["start"] == match["end"]:
        raise BadSchedule(f"{text!r} starts and ends at the same time.")
    return Window(_days(match["first"], match["last"]), start, end, _rate(match["rate"].strip()))


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    for day in (first, last or first):
        if day not in _DAYS:
            raise BadSchedule(f"{day!r} is no day: write {', '.join(_DAYS)}.")
    at, end = _DAYS.index(first), _DAYS.index(last or first)
    return frozenset((at + step) % 7 for step in range((end - at) % 7 + 1))


def _clock(text: str) -> dt.time:
    hour, _, minute = text.partition(":")
    try:
        return dt.time(int(hour) % 24 if text == "24:00" else int(hour), int(minute))
    except ValueError as error:
        raise BadSchedule(f"{text!r} is no time of the day.") from error


def _is_rate(text: str) -> bool:
    return text == "unlimited" or _RATE.fullmatch(text) is not None


def _rate(text: str) -> float | None:
    if text == "unlimited":
        return None
    match = _RATE.fullmatch(text)
    if match is None or not 0 < float(match[1]) * _UNITS[match[2]] <= MOST_BYTES_PER_SECOND:
        raise BadSchedule(f"{text!r} is no rate: write `unlimited`, or a number as in `50 MB/s`.")
    return float(match[1]) * _UNITS[match[2]]
