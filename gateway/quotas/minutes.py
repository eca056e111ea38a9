"""The last minute of every quota on disk, so that a gateway that starts again does not begin to count from nothing.

Written down whenever lines of the journal are about to be dropped. Together with the lines that are still there it is
exact: after `kill -9`, too, no limit a minute is passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from gateway.quotas.ledger import Ledger
from gateway.quotas.windows import Instant
from gateway.usage.openfile import write_whole
from gateway.usage.replay import Place, since

log = structlog.get_logger(__name__)

_Steps = list[tuple[int, int]]


class _Kept(msgspec.Struct):
    """`accounts` has (requests, tokens) by name, each as (Unix second, amount)."""

    accounts: dict[str, tuple[_Steps, _Steps]] = {}
    place: Place = Place()
    """Up to where in the journal these counts go."""


_decode = msgspec.json.Decoder(_Kept).decode


class Minutes:
    """Owner of the file. `load` before the journal is recovered; `keep` is the journal's to call."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self._path = path
        self._ledger = ledger
        self._is_empty = True

    def load(self, journal: Path) -> None:
        """Count what an earlier process counted. A damaged file is as good as none."""
        kept = _Kept()
        try:
            kept = _decode(self._path.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            log.error("minutes.unreadable", error=str(error))
        self._ledger.restore_minutes(kept.accounts, _now())
        asked, end = since(journal, kept.place)
        self._ledger.restore_asked(asked, _now())
        if asked:  # their lines will soon be gone
            self.keep(end)()

    def keep(self, place: Place) -> Callable[[], None]:
        """What is counted now, up to this place; the call that is returned writes it, and may raise OSError."""
        accounts = self._ledger.minutes(_now())
        if not accounts and self._is_empty:
            return _nothing
        self._is_empty = not accounts
        data = msgspec.json.encode(_Kept(accounts, place))
        return lambda: write_whole(self._path, data)


def _nothing() -> None:
    """There is nothing to write."""


def _now() -> Instant:
    return Instant(time.monotonic(), time.time())
