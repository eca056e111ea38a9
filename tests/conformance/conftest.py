"""Clients of all kinds against a real gateway before a real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.conformance.service import Service, running_service

collect_ignore_glob = ["clients/*"]  # these run in an environment of their own


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path) as made:
        yield made
