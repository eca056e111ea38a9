"""One-time work with Django, all in the launcher's own process: schema, CA, first admin, credentials."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from config.home import Home
from config.launcher.errors import LauncherError
from config.launcher.installation import Installation
from fleet.files import write_private

_MIGRATION_LOCK = 7_265_011  # PostgreSQL advisory lock


def use_django(installation: Installation) -> None:
    """Load Django for this installation; its log stays out of the launcher's output."""
    os.environ.pop("DATABASE_URL", None)
    os.environ.update(installation.environment())
    import django

    django.setup()
    logging.getLogger().setLevel(logging.ERROR)


def use_django_once(installation: Installation) -> None:
    """`use_django`, unless it is loaded already."""
    from django.apps import apps

    if not apps.ready:
        use_django(installation)


def migrate(home: Home, detail: Callable[[str], None]) -> int:
    """Bring the schema to this code's; number of migrations applied.

    Raises:
        LauncherError: the database cannot be reached, or was written by a newer release.
    """
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor
    from django.db.utils import OperationalError

    from config.checks import schema_problem

    try:
        connection.ensure_connection()
    except OperationalError as error:
        raise LauncherError(
            f"the database cannot be reached ({str(error).strip().splitlines()[0]}): "
            "start it, or correct --database-url."
        ) from error
    with _one_migration_at_a_time(home):
        executor = MigrationExecutor(connection)
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if plan:
            call_command("migrate", interactive=False, verbosity=1, stdout=_Lines(detail), no_color=True)
        if problem := schema_problem():
            raise LauncherError(problem)
        return len(plan)


@contextmanager
def _one_migration_at_a_time(home: Home) -> Iterator[None]:
    from django.db import connection

    with (home.path / ".migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if connection.vendor != "postgresql":
            yield
            return
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [_MIGRATION_LOCK])
        try:
            yield
        finally:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [_MIGRATION_LOCK])


class _Lines:
    """A stream that hands each line to a callback."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def write(self, text: str) -> int:
        if text.strip():
            self._say(text.strip())
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def ensure_ca(now: dt.datetime) -> None:
    """Make the CA at the first start; renew the master's certificate when that is due."""
    from fleet.ca import ensure_ca as ensure

    ensure(now)


def ensure_admin(installation: Installation) -> dict[str, Any]:
    """The first administrator; credentials.json is written before the row, so that no password is ever lost."""
    from django.contrib.auth import get_user_model

    credentials = installation.credentials() | addresses(installation)
    users = get_user_model().objects
    name, password = credentials.get("admin_user"), credentials.get("admin_password")
    if name and users.filter(username=name).exists():
        pass
    elif not (name and password) and (first := users.filter(is_superuser=True).order_by("pk").first()):
        credentials |= {"admin_user": first.get_username(), "admin_password": None}  # made elsewhere
    else:
        credentials |= {"admin_user": name or "admin", "admin_password": password or secrets.token_urlsafe(15)}
        save_credentials(installation.home, credentials)
        users.create_superuser(credentials["admin_user"], password=credentials["admin_password"])
    save_credentials(installation.home, credentials)
    return credentials


def addresses(installation: Installation) -> dict[str, Any]:
    """The addresses in credentials.json."""
    return {
        "admin_url": f"{installation.master_url}/admin/",
        "api_base": f"{installation.master_url}/api/v1",
        "gateway_base": f"{installation.gateway_url}/v1",
    }


_FIELDS = ("admin_url", "admin_user", "admin_password", "api_base", "gateway_base", "api_key", "model")


def save_credentials(home: Home, credentials: dict[str, Any]) -> None:
    """Write HOME/credentials.json, mode 0600; every field is there, None where there is nothing."""
    whole = {field: credentials.get(field) for field in _FIELDS}
    write_private(home.credentials, json.dumps(whole, indent=1) + "\n")
