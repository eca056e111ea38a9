"""How large files are at their source, asked before the first byte is fetched: room is reserved for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp

from models_registry.download.remote import Remote, TryAgain
from models_registry.errors import SourceUnreachable

_MOST_TRIES = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 20.0


async def measured(session: aiohttp.ClientSession, remotes: Sequence[Remote]) -> list[int]:
    """Sizes in bytes, in the same order. Raises RegistryError for the first that cannot be told."""
    tasks = [asyncio.create_task(_measure(session, remote)) for remote in remotes]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _measure(session: aiohttp.ClientSession, remote: Remote) -> int:
    for number in range(_MOST_TRIES):
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**number)
        try:
            return await remote.measure(session)
        except TryAgain as error:
            reason = str(error)
            pause_s = min(_LONGEST_PAUSE_S, pause_s if error.after_s is None else error.after_s)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            reason = str(error) or type(error).__name__
        if number + 1 < _MOST_TRIES:
            await asyncio.sleep(pause_s)
    raise SourceUnreachable(f"{remote.name} could not be reached: {reason}.")
