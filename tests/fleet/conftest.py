"""A CA of each test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_django import Settings


@pytest.fixture
def ca_dir(tmp_path: Path, settings: Settings) -> Path:
    """An empty folder for the CA."""
    settings.CA_DIR = tmp_path / "ca"
    return tmp_path / "ca"
