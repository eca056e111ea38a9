"""The last minute of every quota on disk, so that a gateway that starts again does not begin to count from nothing."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import structlog

from gateway.home import write_private
from gateway.quota import Ledger
from gateway.windows import Instant

log = structlog.get_logger(__name__)

SAVE_S = 0.5
"""What kill -9 can make forgotten."""

_Steps = list[tuple[int, int]]
_decode = msgspec.json.Decoder(dict[str, tuple[_Steps, _Steps]]).decode


class Minutes:
    """Owner of the file. `run` is its one task."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self._path = path
        self._ledger = ledger
        self._saved = b""

    def load(self) -> None:
        """Count what an earlier process counted. A damaged file is as good as none."""
        try:
            kept = _decode(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.error("minutes.unreadable", error=str(error))
            return
        self._ledger.restore_minutes(kept, _now())

    async def run(self) -> None:
        """Save what changed until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(SAVE_S)
                data = self._changed()
                if data is not None:
                    await asyncio.to_thread(self._save, data)
        finally:
            data = self._changed()
            if data is not None:
                self._save(data)

    def _changed(self) -> bytes | None:
        data = msgspec.json.encode(self._ledger.minutes(_now()))
        return None if data == self._saved else data

    def _save(self, data: bytes) -> None:
        try:
            write_private(self._path, data)
        except OSError as error:
            log.error("minutes.not_saved", error=str(error), remedy="Free space on the gateway's disk.")
        else:
            self._saved = data


def _now() -> Instant:
    return Instant(time.monotonic(), time.time())
