"""What went to engines after the minutes were last written down, read from the journal that a killed process left."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gateway.usage.records import Begun, Record, read_lines


class Place(NamedTuple):
    """A point in a journal: all lines before it, and all files named before `file`, came earlier."""

    file: str = ""
    offset: int = 0


class Asked(NamedTuple):
    """A part of what one request counts for within its minute."""

    unix_s: float
    record: Record
    requests: int
    tokens: int


def since(folder: Path, place: Place) -> tuple[list[Asked], Place]:
    """(what came after `place`, by time; the end of the journal). Before the files are sealed.

    A request counts when it went to an engine, its tokens when it ended; one that never ended counts its prompt.
    """
    begun: dict[str, Begun] = {}
    ended: set[str] = set()
    found: list[Asked] = []
    end = place
    for path in sorted(folder.glob("*.open")):
        data = path.read_bytes()
        cut = place.offset if path.stem == place.file else len(data) if path.stem < place.file else 0
        records, started = read_lines(data[:cut], path.name)
        begun.update((one.name, one) for one in started)
        ended.update(record.begun for record in records)
        records, started = read_lines(data[cut:], path.name)
        for one in started:
            if one.name not in begun:  # else told again in a new file, as it still ran
                found.append(Asked(one.unix_s, one.record, 1, 0))
                begun[one.name] = one
        for record in records:
            if (one_begun := begun.get(record.begun)) is not None:
                at = one_begun.unix_s + record.duration_ms / 1000
                found.append(Asked(at, record, 0, record.prompt_tokens + record.completion_tokens))
            ended.add(record.begun)
        end = max(end, Place(path.stem, len(data)))
    lost = [one for name, one in begun.items() if name not in ended]
    found += [Asked(one.unix_s, one.record, 0, one.record.prompt_tokens) for one in lost]
    found.sort(key=lambda asked: asked.unix_s)
    return found, end
