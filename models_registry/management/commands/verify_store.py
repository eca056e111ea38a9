"""`./stokehold verify_store [MODEL ...]`"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from models_registry.models import ModelVersion, VersionState
from models_registry.services import verify_version


class Command(BaseCommand):
    help = "Read every byte of the model store and compare it with its hash. Exit code 1 when something is damaged."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("models", nargs="*", help="names of models; default: all")

    def handle(self, *, models: list[str], **options: Any) -> None:
        rows = ModelVersion.objects.filter(state=VersionState.READY).select_related("model").order_by("pk")
        if models:
            rows = rows.filter(model__name__in=models)
        damaged = 0
        for row in rows:
            wrong = verify_version(row)
            damaged += len(wrong)
            for path in wrong:
                self.stderr.write(f"{row}: {path} is missing, or not what it was")
            if not wrong:
                self.stdout.write(f"{row}: {len(row.manifest['files'])} files are as they should be")
        if damaged:
            raise CommandError(f"{damaged} files are damaged: import these versions again.")
