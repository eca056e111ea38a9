"""May this code run on this database?"""

from __future__ import annotations

from django.db import DEFAULT_DB_ALIAS, DatabaseError, InterfaceError, connections
from django.db.migrations.loader import MigrationLoader


def schema_problem(alias: str = DEFAULT_DB_ALIAS) -> str | None:
    """One sentence that says why not, and what to do; None when schema and code match."""
    connection = connections[alias]
    try:
        loader = MigrationLoader(connection)
    except (DatabaseError, InterfaceError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return f"The database does not answer ({reason}): start it, or correct DATABASE_URL."
    applied = set(loader.applied_migrations)
    on_disk = set(loader.disk_migrations)
    missing = sorted(on_disk - applied)
    if missing:
        return (
            f"The database lacks {len(missing)} migration(s), the first is {_name(missing[0])}: "
            "run `./stokehold migrate`, then start again."
        )
    unknown = sorted(key for key in applied - on_disk if key[0] in loader.migrated_apps and not _replaced(loader, key))
    if unknown:
        return (
            f"The database is newer than this code (it has {_name(unknown[0])}): "
            "start the release that migrated it, or restore a backup made before."
        )
    return None


def _replaced(loader: MigrationLoader, key: tuple[str, str]) -> bool:
    return any(key in migration.replaces for migration in loader.disk_migrations.values())


def _name(key: tuple[str, str]) -> str:
    return ".".join(key)
