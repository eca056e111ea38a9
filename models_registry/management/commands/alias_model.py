"""`./stokehold alias_model MODEL [ALIAS [VERSION]] [--delete | --follow]`"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from models_registry import aliases
from models_registry.acting import COMMAND_LINE
from models_registry.errors import RegistryError
from models_registry.models import ModelAlias


class Command(BaseCommand):
    help = "Show a model's aliases; or point one at a version, and deployments that follow it roll that out."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", help="name of the model")
        parser.add_argument("alias", nargs="?", help="name of the alias, e.g. prod")
        parser.add_argument("model_version", nargs="?", metavar="version", help="where it should point")
        change = parser.add_mutually_exclusive_group()
        change.add_argument("--delete", action="store_true", help="remove the alias")
        change.add_argument("--follow", action="store_true", help="let `latest` follow the newest version again")

    def handle(self, *, model: str, alias: str | None, model_version: str | None, **options: Any) -> None:
        if bool(model_version) + options["delete"] + options["follow"] != (alias is not None):
            raise CommandError("Give an alias with a version, or with --delete, or with --follow.")
        try:
            if model_version:
                version = aliases.resolve(f"{model}:{model_version}").version
                aliases.set_alias(version, alias or "", by=COMMAND_LINE, now=timezone.now())
            elif alias is not None:
                row = aliases.resolve(f"{model}@{alias}").alias
                verb = aliases.delete_alias if options["delete"] else aliases.release_latest
                verb(row, by=COMMAND_LINE, now=timezone.now())
        except RegistryError as error:
            raise CommandError(f"{error.message} {error.remedy}") from error
        for row in ModelAlias.objects.filter(model__name=model).select_related("model", "version"):
            self.stdout.write(f"{row} -> {row.version.version}{'' if row.pinned else ' (follows the newest)'}")
