"""Background work of a process that serves links: a step, done again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import structlog
from channels.db import database_sync_to_async

log = structlog.get_logger(__name__)

_COMPLAIN_EVERY_S = 15.0


class Loop:
    """Runs `step` every `interval_s`, and soon after `wake`. A step that fails is logged and tried again.

    The server has no start-up hook, so a loop is started by whoever first needs it (`ensure`), and ends by itself
    when a step returns False (nothing left to do; its last look at that must be made without awaiting).
    """

    def __init__(
        self, name: str, step: Callable[[], Awaitable[bool]], *, interval_s: float, gather_s: float = 0.02
    ) -> None:
        self._name = name
        self._step = step
        self._interval_s = interval_s
        self._gather_s = gather_s  # after a wake: what comes right behind it is done in the same step
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing_since: float | None = None
        self._complained_at = 0.0

    def ensure(self) -> None:
        """Run from now on, if it does not yet."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name=self._name)

    def wake(self) -> None:
        """Do the next step now."""
        self._woken.set()

    async def _run(self) -> None:
        while True:
            try:
                wanted = await self._step()
            except Exception as error:  # the owner of this work: whatever fails is logged here, and tried again
                self._complain(error)
            else:
                self._recovered()
                if not wanted:
                    return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._interval_s)
                await asyncio.sleep(self._gather_s)
            self._woken.clear()

    def _complain(self, error: Exception) -> None:
        moment = time.monotonic()
        if self._failing_since is None:
            self._failing_since = moment
        if moment - self._complained_at > _COMPLAIN_EVERY_S:
            self._complained_at = moment
            log.error("loop.failed", loop=self._name, error=repr(error), exc_info=error)

    def _recovered(self) -> None:
        if self._failing_since is not None:
            log.info("loop.recovered", loop=self._name, failed_for_s=round(time.monotonic() - self._failing_since, 1))
            self._failing_since, self._complained_at = None, 0.0


class DatabaseThread:
    """Threads for one kind of database work, so that a slow one never holds up another. Old connections are closed."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Result of `function(*args)`; it may use the ORM."""
        return await database_sync_to_async(function, thread_sensitive=False, executor=self._executor)(*args)
