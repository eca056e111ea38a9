from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def model_store(settings, tmp_path: Path) -> Path:
    """A store of its own for each test."""
    settings.MODEL_STORE_DIR, settings.PIECES_DIR = tmp_path / "store", tmp_path / "pieces"
    return settings.MODEL_STORE_DIR
