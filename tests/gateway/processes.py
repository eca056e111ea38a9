"""The gateway as a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parents[2]


async def start(*arguments: str) -> Process:
    """`python -m gateway ARGUMENTS`, its stderr kept."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        *arguments,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def finish(process: Process, *, within_s: float = 20.0) -> tuple[int, str]:
    """(exit code, stderr)"""
    async with asyncio.timeout(within_s):
        _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


async def answers(base: str, client: aiohttp.ClientSession, *, within_s: float = 20.0) -> None:
    """Wait until it is ready."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                async with client.get(base + "/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.02)
