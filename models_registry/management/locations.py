"""Locations by their names, for commands."""

from __future__ import annotations

from django.core.management.base import CommandError

from models_registry.location_models import StorageLocation
from models_registry.locations.services import locations


def location_called(name: str) -> StorageLocation:
    """Raises CommandError when there is none of this name."""
    row = locations().filter(name=name).first()
    if row is None:
        raise CommandError(f"There is no location {name!r}: `store list` shows them.")
    return row
