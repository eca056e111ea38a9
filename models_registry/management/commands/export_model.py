"""`./stokehold export_model NAME[:VERSION] TARGET`"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from models_registry.archive.services import export_version
from models_registry.errors import RegistryError
from models_registry.models import ModelVersion, VersionState


class Command(BaseCommand):
    help = "Write a model version to a folder, or to TARGET.tar, for another master to import (import_model)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", help="NAME:VERSION; without a version, the newest one")
        parser.add_argument("target", type=Path, help="a path that does not exist yet; a tar when it ends in .tar")

    def handle(self, *, model: str, target: Path, **options: Any) -> None:
        try:
            made = export_version(_version(model), target, progress=self._show)
        except RegistryError as error:
            raise CommandError(f"{error.message} {error.remedy}") from error
        if self.stderr.isatty():
            self.stderr.write("")
        self.stdout.write(f"{made} is written. Import it elsewhere with: ./stokehold import_model {made}")

    def _show(self, share: float) -> None:
        percent = int(share * 100)
        if self.stderr.isatty() and percent != getattr(self, "_percent", None):
            self._percent = percent
            self.stderr.write(f"\rWriting and checking ... {percent:3} %", ending="")
            self.stderr.flush()


def _version(text: str) -> ModelVersion:
    name, _, number = text.partition(":")
    rows = ModelVersion.objects.filter(model__name=name, state=VersionState.READY).select_related("model")
    row = (rows.filter(version=number) if number else rows.order_by("-created_at", "-pk")).first()
    if row is None:
        raise CommandError(f"There is no ready version {text}.")
    return row
