"""What projects that wish it have kept: requests and answers, redacted, a JSON line each, in a file a project and day.

`HOME/requests/<project>/<UTC day>.jsonl`, mode 0600. Off unless a project switches it on; what was kept is deleted
when its days are over, and within an hour after it has been switched off. Nothing of it goes to the master. The texts
wait in memory for at most half a second and `MOST_WAITING_BYTES`; beyond that, and on a disk that is nearly full, they
are dropped and counted: serving does not depend on the log.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import structlog

from gateway.meter import Dialect
from gateway.said import said_in
from gateway.state import ProjectEntry
from wire.feed import RequestLog as Rules
from wire.redaction import BadPattern, Redaction

log = structlog.get_logger(__name__)

MOST_WAITING_BYTES = 64 * 1024 * 1024
MOST_ANSWER_BYTES = 4 * 1024 * 1024
"""Of one streamed answer; what is longer is kept up to here."""
LONGEST_TEXT = 32_768
"""Characters of one text; images and documents are cut so."""
MOST_LINE_BYTES = 8 * 1024 * 1024
FREE_BYTES = 1 << 30
_FLUSH_S, _PURGE_S = 0.5, 3600.0


class Entry(NamedTuple):
    """One request that has ended."""

    unix_s: float
    project_id: str
    rules: Rules
    request_id: str
    key_id: str
    endpoint: str
    dialect: Dialect
    model: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    took_ms: int
    request: bytes
    answer: bytes
    is_stream: bool


class RequestLog:
    """`add` never waits; `run` is the one task that writes and deletes."""

    def __init__(self, folder: Path, projects: Callable[[], Mapping[str, ProjectEntry] | None]) -> None:
        self._folder = folder
        self._projects = projects
        """As last told by the master; None: not known yet."""
        self._waiting: list[Entry] = []
        self._waiting_bytes = 0
        self._redactions: dict[Rules, Redaction | None] = {}
        self._purge_at = 0.0
        self.dropped = 0

    def add(self, entry: Entry) -> None:
        """Take it, if not too much waits already."""
        size = len(entry.request) + len(entry.answer)
        if self._waiting_bytes + size > MOST_WAITING_BYTES:
            self.dropped += 1
            return
        self._waiting_bytes += size
        self._waiting.append(entry)

    async def run(self) -> None:
        """Write and delete until cancelled; what waits then is written by `flush`."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            if self._waiting:
                await asyncio.to_thread(self.flush)
            if time.monotonic() >= self._purge_at and (projects := self._projects()) is not None:
                self._purge_at = time.monotonic() + _PURGE_S
                days = {name: one.project.request_log for name, one in projects.items()}
                await asyncio.to_thread(self.purge, days, datetime.now(UTC).date())

    def flush(self) -> None:
        """Write what waits."""
        entries, self._waiting, self._waiting_bytes = self._waiting, [], 0
        lines: dict[Path, list[bytes]] = {}
        for entry in entries:
            day = datetime.fromtimestamp(entry.unix_s, UTC).date().isoformat()
            path = self._folder / entry.project_id / f"{day}.jsonl"
            lines.setdefault(path, []).append(line_of(entry, self._redaction(entry.rules)))
        for path, texts in lines.items():
            try:
                self._append(path, b"".join(texts))
            except OSError as error:
                self.dropped += len(texts)
                log.error("requests.not_kept", error=str(error), remedy="Free space on the gateway's disk.")

    def purge(self, rules: Mapping[str, Rules | None], today: date) -> None:
        """Delete what is older than its project wants, and everything of projects that want nothing or are gone."""
        for folder in self._folder.glob("*"):
            wanted = rules.get(folder.name)
            if wanted is None:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            oldest = (today - timedelta(days=wanted.retention_days)).isoformat()
            for path in folder.glob("*.jsonl"):
                if path.stem < oldest:
                    path.unlink(missing_ok=True)

    def _redaction(self, rules: Rules) -> Redaction | None:
        if rules not in self._redactions:
            if len(self._redactions) > 1000:
                self._redactions.clear()
            try:
                self._redactions[rules] = Redaction(rules.redact)
            except BadPattern as error:  # the master has checked them; if it was another release, say nothing
                log.error("requests.bad_pattern", error=str(error), remedy="Correct it on the project's page.")
                self._redactions[rules] = None
        return self._redactions[rules]

    def _append(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if shutil.disk_usage(path.parent).free < FREE_BYTES + len(data):
            raise OSError(f"less than {FREE_BYTES >> 30} GiB would be left free")
        # One write with O_APPEND: lines of several processes do not mix.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)


def line_of(entry: Entry, redaction: Redaction | None) -> bytes:
    """One JSON line. Without a redaction the texts are left out."""
    line = {
        "timestamp": datetime.fromtimestamp(entry.unix_s, UTC).isoformat(timespec="milliseconds"),
        "request_id": entry.request_id,
        "key": f"sk-stk-{entry.key_id}",
        "endpoint": entry.endpoint,
        "model": entry.model,
        "status": entry.status,
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "took_ms": entry.took_ms,
    }
    if redaction is not None:
        line["request"] = redaction.value(_data(entry.request), LONGEST_TEXT)
        answer = said_in(entry.answer, entry.dialect) if entry.is_stream else _data(entry.answer)
        line["answer"] = redaction.value(answer, LONGEST_TEXT)
    data = orjson.dumps(line)
    if len(data) > MOST_LINE_BYTES:
        line["request"] = line["answer"] = f"too long to be kept ({len(data)} bytes)"
        data = orjson.dumps(line)
    return data + b"\n"


def _data(body: bytes) -> Any:
    """JSON; of anything else (audio) how much it is."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return f"{len(body)} bytes" if body else None
