"""What may be taken in, and under which name: checked before anything is read."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.core.exceptions import ValidationError

from models_registry.errors import BadSource, InvalidName
from models_registry.location_models import StorageLocation
from models_registry.models import Model, ModelVersion
from models_registry.scan import keeps_secrets

_MACHINES_OWN = tuple(
    Path(one)
    for one in ("/etc", "/proc", "/sys", "/dev", "/boot", "/run/secrets", "/run/user", "/var/log", "/var/spool")
)
_DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal")


def checked_source(path: Path) -> Path:
    """`path`, absolute.

    Raises BadSource: not there, no text, outside `settings.IMPORT_ROOTS`, or it touches what is this installation's or
    the machine's own: whoever imports a file can read it, by exporting the version.
    """
    try:
        str(path).encode()
        real = Path(path).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BadSource(f"{path} does not exist on the master's machine, or cannot be read.") from error
    except ValueError as error:  # a NUL, or bytes that are no UTF-8
        raise BadSource(f"{str(path)!r} is not a path that can be written down.", remedy="Rename it first.") from error
    if any(real.is_relative_to(own) or own.is_relative_to(real) for own in own_paths()):
        raise BadSource(
            f"{path} holds, or is part of, this installation's own home folder.",
            remedy="Give a folder that holds the model's files only.",
        )
    roots = [Path(root).resolve() for root in settings.IMPORT_ROOTS]
    if roots and not any(real.is_relative_to(root) for root in roots):
        raise BadSource(
            f"{path} is outside the folders that models may be taken from.",
            remedy=f"Put it below {' or '.join(str(root) for root in roots)} (STOKEHOLD_IMPORT_ROOTS).",
        )
    if keeps_secrets(real) or any(real.is_relative_to(own) or own.is_relative_to(real) for own in _MACHINES_OWN):
        raise BadSource(
            f"{path} holds, or is part of, what belongs to the machine or to its users' keys.",
            remedy="Give a folder that holds the model's files only.",
        )
    return Path(path).absolute()


def own_paths() -> tuple[Path, ...]:
    """Folders and files of this installation, resolved: secrets, certificates, the store, an embedded database.

    Nothing in them is ever taken in from a path that a person gave: it would be handed to every server.
    """
    paths = [Path(settings.HOME.path), Path(settings.CA_DIR), Path(settings.MODEL_STORE_DIR)]
    database = settings.DATABASES["default"]
    if database["ENGINE"].endswith("sqlite3"):
        paths += [Path(f"{database['NAME']}{suffix}") for suffix in _DATABASE_SUFFIXES]
    stores = StorageLocation.objects.filter(builtin=False)  # resolved when added; to do so now may hang on a dead disk
    return (*(path.resolve() for path in paths), *(location.store_root for location in stores))


def check_name(name: str | None, version: str | None) -> None:
    """Raises InvalidName. None of either: it is not known yet, or will be the next free number."""
    try:
        if name is not None:
            Model._meta.get_field("name").clean(name, None)
        if version is not None:
            ModelVersion._meta.get_field("version").clean(version, None)
    except ValidationError as error:
        raise InvalidName(" ".join(error.messages)) from error
