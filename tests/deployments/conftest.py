"""Fixtures of the deployments' tests."""

from __future__ import annotations

import pytest
from django.utils import timezone

from tests.deployments.agents import Agents


@pytest.fixture
def world() -> Agents:
    return Agents(timezone.now())
