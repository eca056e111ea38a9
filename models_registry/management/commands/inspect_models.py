"""`./stokehold inspect_models [MODEL ...]`"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from models_registry.catalog import reinspect, signatures_of
from models_registry.errors import RegistryError
from models_registry.models import ModelVersion, VersionState


class Command(BaseCommand):
    help = (
        "Read the headers of the models again, and look for files that can run code and for signatures: "
        "after an update of Stokehold."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("models", nargs="*", help="names of models; default: all")

    def handle(self, *, models: list[str], **options: Any) -> None:
        rows = ModelVersion.objects.filter(state=VersionState.READY).select_related("model").order_by("pk")
        failed = 0
        for row in rows.filter(model__name__in=models) if models else rows:
            try:
                reinspect(row)
            except (RegistryError, OSError) as error:
                failed += 1
                self.stderr.write(f"{row}: {error}")
            else:
                self.stdout.write(f"{row}: {', '.join(_told(row))}")
        if failed:
            raise CommandError(f"{failed} versions could not be read: `verify_store` tells what is damaged.")


def _told(row: ModelVersion) -> list[str]:
    said = [row.modality or row.format]
    if row.flagged:
        said.append("can run code")
    if any(one["differing_count"] for one in signatures_of(row) or ()):
        said.append("differs from its signatures or checksums")
    return said
