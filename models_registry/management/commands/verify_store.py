"""`./stokehold verify_store [MODEL ...] [--location L] [--repair]`"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from models_registry.errors import LocationUnreachable
from models_registry.location_models import StorageLocation, VersionCopy
from models_registry.locations.copies import adopt
from models_registry.locations.repair import repair
from models_registry.locations.scrub import verify_now
from models_registry.models import Model, VersionState


class Command(BaseCommand):
    help = (
        "Read every byte of every copy and compare it with its hash. Exit code 1 when something is, or stays, damaged."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("models", nargs="*", help="names of models; default: all")
        parser.add_argument("--location", help="name of a location; default: all")
        parser.add_argument("--repair", action="store_true", help="mend it from another copy, or from where it came")

    def handle(self, *, models: list[str], location: str | None, repair: bool, **options: Any) -> None:
        adopt()
        _check_names(models, location)
        rows = VersionCopy.objects.filter(version__state=VersionState.READY).order_by("version", "pk")
        if models:
            rows = rows.filter(version__model__name__in=models)
        if location:
            rows = rows.filter(location__name=location)
        damaged = unseen = 0
        for copy in rows.select_related("location", "version__model"):
            try:
                damaged += self._verify(copy, repair)
            except LocationUnreachable as error:
                self.stderr.write(f"{copy} was not verified: {error.message}")
                unseen += 1
        if damaged:
            raise CommandError(f"{_count(damaged, 'file is', 'files are')} damaged: import these versions again.")
        if unseen:
            raise CommandError(f"{_count(unseen, 'copy', 'copies')} could not be reached.")

    def _verify(self, copy: VersionCopy, mend: bool) -> int:
        """How many of its files are, and stay, damaged."""
        bad = verify_now(copy, timezone.now())
        for one in bad:
            self.stderr.write(f"{copy}: {one['path']} {one['problem']}")
        if not bad:
            files = len(copy.version.manifest["files"])
            self.stdout.write(f"{copy}: {_count(files, 'file is as it', 'files are as they')} should be")
        elif mend:
            left = repair(copy)
            self.stdout.write(f"{copy}: {len(bad) - len(left)} of {_count(len(bad), 'file', 'files')} repaired")
            return len(left)
        return len(bad)


def _check_names(models: list[str], location: str | None) -> None:
    """A name that is misspelt must not pass for one whose files are all whole."""
    there = set(Model.objects.filter(name__in=models).values_list("name", flat=True))
    if missing := [name for name in models if name not in there]:
        raise CommandError(f"There is no model {', '.join(missing)}.")
    if location and not StorageLocation.objects.filter(name=location).exists():
        raise CommandError(f"There is no location {location}.")


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
