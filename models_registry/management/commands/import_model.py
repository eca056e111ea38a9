"""`./stokehold import_model [NAME] PATH [--version V] [--link]`"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from models_registry.acting import COMMAND_LINE
from models_registry.errors import RegistryError
from models_registry.management.locations import location_called
from models_registry.services import import_path


class Command(BaseCommand):
    help = "Take a model's file or folder, or an archive of export_model, into the store as an immutable version."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", help="name of the model, e.g. smollm2; archives have one")
        parser.add_argument("path", type=Path, help="a file, a folder with the model's files, or an archive")
        parser.add_argument("--version", dest="model_version", metavar="V", help="default: next number")
        parser.add_argument("--link", action="store_true", help="hard-link instead of copying, where possible")
        parser.add_argument("--location", help="name of the storage location it goes to; default: the default one")

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        return super().create_parser(prog_name, subcommand, conflict_handler="resolve", **kwargs)

    def handle(
        self,
        *,
        name: str | None,
        path: Path,
        model_version: str | None,
        link: bool,
        location: str | None,
        **options: Any,
    ) -> None:
        how = {"version": model_version, "link": link, "location": location_called(location) if location else None}
        try:
            version = import_path(name, path, **how, by=COMMAND_LINE, now=timezone.now(), progress=self._show)
        except RegistryError as error:
            raise CommandError(f"{error.message} {error.remedy}") from error
        self._end_line()
        self.stdout.write(f"{version} is ready: {_describe(version)}")

    def _show(self, share: float) -> None:
        percent = int(share * 100)
        if self.stderr.isatty() and percent != getattr(self, "_percent", None):
            self._percent = percent
            self.stderr.write(f"\rReading and hashing ... {percent:3} %", ending="")
            self.stderr.flush()

    def _end_line(self) -> None:
        if self.stderr.isatty():
            self.stderr.write("")


def _describe(version: Any) -> str:
    parts = [version.get_format_display(), version.architecture, version.quantization]
    if version.parameter_count:
        parts.append(f"{version.parameter_count / 1e6:,.0f} M parameters")
    parts.append(f"{version.size_bytes / 1e6:,.1f} MB")
    return ", ".join(part for part in parts if part)
