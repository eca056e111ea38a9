"""Fixtures for every folder: people, API clients, and servers that real tests need."""

from __future__ import annotations

import datetime as dt
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.utils import timezone
from hypothesis import HealthCheck, settings
from pytest_django import Settings
from rest_framework.test import APIClient

from tests.master import Master, test_database_url
from tests.ports import free_port

# No test fails of its time: the machine may be busy with the others.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database-only", action="store_true", help="only tests that use the database")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For runs on another database: what does not use one has been run already."""
    if not config.getoption("--database-only"):
        return
    used = [one for one in items if _uses_database(one)]
    config.hook.pytest_deselected(items=[one for one in items if not _uses_database(one)])
    items[:] = used


def _uses_database(item: pytest.Item) -> bool:
    fixtures = set(getattr(item, "fixturenames", ()))
    return item.get_closest_marker("django_db") is not None or bool(fixtures & {"db", "transactional_db"})


@pytest.fixture
def now() -> dt.datetime:
    """This moment, aware UTC."""
    return timezone.now()


@pytest.fixture(autouse=True)
def _nothing_cached() -> Iterator[None]:
    """Throttles and other caches start empty."""
    yield
    cache.clear()


@pytest.fixture
def admin(db: None) -> User:
    """A superuser."""
    return User.objects.create_superuser("root", "root@example.org", "correct horse battery")


@pytest.fixture
def api(admin: User) -> APIClient:
    """REST client of a superuser."""
    client = APIClient()
    client.force_authenticate(admin)
    return client


@pytest.fixture
def viewer(db: None) -> User:
    """Staff that may look at everything and change nothing."""
    user = User.objects.create_user("viewer", "viewer@example.org", "correct horse battery", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    return user


@pytest.fixture
def viewer_api(viewer: User) -> APIClient:
    """REST client of a viewer."""
    client = APIClient()
    client.force_authenticate(viewer)
    return client


@pytest.fixture
def anonymous_api() -> APIClient:
    return APIClient()


# ------------------------------------------------------------------------------------------------ a real master


@pytest.fixture(scope="session")
def _steady_content_types(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Content types keep their ids when the tables are flushed after a test: a running master remembers them."""
    from django.contrib.contenttypes.models import ContentType
    from django.core.management.commands import flush

    with django_db_blocker.unblock():
        rows = list(ContentType.objects.all())
    emit = flush.emit_post_migrate_signal

    def emit_with_the_same(*arguments: Any, **options: Any) -> None:
        ContentType.objects.bulk_create(rows, ignore_conflicts=True)
        emit(*arguments, **options)

    patch = pytest.MonkeyPatch()
    patch.setattr(flush, "emit_post_migrate_signal", emit_with_the_same)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def _running_master(_steady_content_types: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    running = Master(tmp_path_factory.mktemp("master"), test_database_url())
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def master(_running_master: Master, transactional_db: None, settings: Settings) -> Master:
    """A daphne over this test's database, with the CA and the pepper that the test itself uses. No channel layer."""
    settings.CA_DIR = _running_master.home.ca
    settings.KEY_PEPPER = _running_master.home.secrets()["key_pepper"]
    return _running_master


# ------------------------------------------------------------------------------------------------ PostgreSQL


@dataclass
class Postgres:
    """A PostgreSQL server of this test run, on a port of loopback."""

    bin_dir: Path
    data_dir: Path
    port: int
    user: str
    _databases: int = 0

    def create_database(self) -> str:
        """`DATABASE_URL` of a new, empty database."""
        self._databases += 1
        name = f"test{self._databases}"
        connect = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        subprocess.run([self.bin_dir / "createdb", *connect, name], check=True, capture_output=True)
        return f"postgres://postgres@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -k '' -h 127.0.0.1 -c fsync=off -c max_connections=60"
        log = self.data_dir.parent / "log"
        self._run("pg_ctl", "-D", str(self.data_dir), "-o", options, "-l", str(log), "-w", "-t", "30", "start")

    def stop(self) -> None:
        """Stop it at once, its connections cut, its data kept."""
        self._run("pg_ctl", "-D", str(self.data_dir), "-m", "fast", "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.bin_dir / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would never end
            stderr=subprocess.DEVNULL,
            user=self.user or None,
            cwd="/",
            check=False,
        )
        if done.returncode:
            log = self.data_dir.parent / "log"
            raise RuntimeError(f"{program} failed: {log.read_text() if log.exists() else done.returncode}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server from Debian's package, one a test process; it refuses to run as root, so it does not."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
    user = _unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="stokehold-pg-"))
    if user:
        shutil.chown(folder, user)
    server = Postgres(programs[-1], folder / "data", free_port(), user)
    server._run("initdb", "-D", str(server.data_dir), "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8")
    server.start()
    try:
        yield server
    finally:
        if (server.data_dir / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_user() -> str:
    """Name of a user to run PostgreSQL as; empty: as ourselves."""
    if os.getuid() != 0:
        return ""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise RuntimeError("no unprivileged user to run PostgreSQL as")
