"""`manage.py restart_deployment NAME [NAME ...]`: a new instance in place of each, without losing requests."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from deployments import services
from deployments.models import Deployment
from wire.errors import Problem


class Command(BaseCommand):
    help = "Replace the instances of deployments one after the other, with the settings that they have."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("names", nargs="+", metavar="NAME")

    def handle(self, *, names: list[str], **options: Any) -> None:
        rows = {row.name: row for row in Deployment.objects.filter(name__in=names, deleted_at__isnull=True)}
        if unknown := sorted(set(names) - set(rows)):
            raise CommandError(f"There is no deployment {', '.join(unknown)}. Nothing was restarted.")
        for name in dict.fromkeys(names):
            try:
                row = services.restart(rows[name], now=timezone.now(), actor="command line")
            except Problem as error:
                raise CommandError(f"{error} {error.remedy}") from error
            self.stdout.write(f"{row.name} restarts, as revision {row.revision.number}")
