from collections.abc import Callable
from pathlib import Path

import pytest

from models_registry.location_models import StorageLocation
from models_registry.locations import find, jobs, services
from tests.models_registry.factories import NOW


@pytest.fixture(autouse=True)
def home(settings, tmp_path: Path) -> None:
    """A home of its own for each test, and nothing remembered of the last one's places."""

    class Home:
        path = tmp_path / "home"

    settings.HOME = Home
    settings.CA_DIR = Home.path / "ca"
    find.forget_places()


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent to a worker: the test is one."""
    monkeypatch.setattr(jobs, "_enqueue", lambda job: None)


@pytest.fixture
def add(tmp_path: Path) -> Callable[..., StorageLocation]:
    """Adds a location in a folder of its name."""

    def make(name: str, **more) -> StorageLocation:
        (tmp_path / name).mkdir(exist_ok=True)
        return services.add_location(name, str(tmp_path / name), **{"now": NOW, **more})

    return make
