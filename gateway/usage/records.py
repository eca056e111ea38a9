"""What one request took, as a line of a journal and as a part of a summed row."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import structlog

from wire.feed import LATENCY_BOUNDS_MS, UsageRow

log = structlog.get_logger(__name__)


class Record(NamedTuple):
    """Usage of one request, in the order of a journal line."""

    hour: int
    project_id: str
    key_id: str
    model: str
    status: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    duration_ms: int
    ttft_ms: int
    cost: int = 0  # nano-units; missing in lines of earlier releases
    begun: str = ""
    """Names the line that told of the request when it went to an engine; empty: there is none."""


class Begun(NamedTuple):
    """Told when a request goes to an engine: how it counts if the process dies before it ends."""

    name: str
    record: Record
    unix_s: int = 0
    """When; missing in lines of earlier releases."""


Group = tuple[int, str, str, str, int]
"""hour x project x key x model x status"""
_BUCKETS = len(LATENCY_BOUNDS_MS) + 1
_DURATIONS = 7  # where the histograms begin in a sum
_TTFTS = _DURATIONS + _BUCKETS

encode_line = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_begun = msgspec.json.Decoder(Begun).decode


def add_up(sums: dict[Group, list[int]], records: Iterable[Record]) -> None:
    """Add records to `sums`: requests, the numbers of a Record in their order, then both histograms."""
    for record in records:
        group = record[:5]
        total = sums.get(group)
        if total is None:
            total = sums[group] = [0] * (_TTFTS + _BUCKETS)
        total[0] += 1
        total[1] += record[5]
        total[2] += record[6]
        total[3] += record[7]
        total[4] += record[8]
        total[5] += record[9]
        total[6] += record[10]
        total[_DURATIONS + bisect_left(LATENCY_BOUNDS_MS, record[8])] += 1
        if record[9]:
            total[_TTFTS + bisect_left(LATENCY_BOUNDS_MS, record[9])] += 1


def sum_rows(records: Iterable[Record]) -> tuple[UsageRow, ...]:
    """One row a group."""
    sums: dict[Group, list[int]] = {}
    add_up(sums, records)
    return rows_of(sums)


def rows_of(sums: dict[Group, list[int]]) -> tuple[UsageRow, ...]:
    """What `add_up` has summed."""
    return tuple(
        UsageRow(
            hour=hour,
            project_id=project_id,
            key_id=key_id,
            model=model,
            status=status,
            requests=total[0],
            prompt_tokens=total[1],
            cached_tokens=total[2],
            completion_tokens=total[3],
            duration_ms=total[4],
            ttft_ms=total[5],
            cost=total[6],
            durations=tuple(total[_DURATIONS:_TTFTS]),
            ttfts=tuple(total[_TTFTS:]),
        )
        for (hour, project_id, key_id, model, status), total in sums.items()
    )


def read_lines(data: bytes, name: str) -> tuple[list[Record], list[Begun]]:
    """Lines of a journal file, whose rest is zeros. A torn line is dropped; `name` is the file's, for the log."""
    records: list[Record] = []
    begun: list[Begun] = []
    for line in data.rstrip(b"\0").split(b"\n"):
        if not line:
            continue
        try:
            if line.startswith(b'["'):
                begun.append(_decode_begun(line))
            else:
                records.append(_decode_record(line))
        except msgspec.DecodeError:
            log.warning("journal.torn_line", file=name, length=len(line))
    return records, begun


def recovered(files: Sequence[tuple[list[Record], list[Begun]]]) -> list[list[Record]]:
    """Records of each file, in order of age; what was begun and has no end anywhere is in the last that tells of it."""
    ended = {record.begun for records, _ in files for record in records}
    last = {begun.name: index for index, (_, started) in enumerate(files) for begun in started}
    return [
        records + [one.record for one in started if one.name not in ended and last[one.name] == index]
        for index, (records, started) in enumerate(files)
    ]
