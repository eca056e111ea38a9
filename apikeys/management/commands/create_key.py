"""`./stokehold create_key --project P --name N [--model M ...]`"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from apikeys.errors import KeysError
from apikeys.models import Project
from apikeys.services import create_key, create_project


class Command(BaseCommand):
    help = "Make a key and print it, once. The project is made when it is new."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--project", required=True, help="name of the project")
        parser.add_argument("--name", required=True, help="what the key is for")
        parser.add_argument("--model", action="append", default=[], help="model it may use, repeatable; default: all")

    def handle(self, *, project: str, name: str, model: list[str], **options: Any) -> None:
        now = timezone.now()
        try:
            with transaction.atomic():  # a key that is refused leaves no project behind
                tenant = Project.objects.filter(name=project).first() or create_project(project)
                _, text = create_key(project=tenant, name=name, allowed_models=model, actor="create_key", now=now)
        except KeysError as error:
            raise CommandError(f"{error.message} {error.remedy}") from error
        self.stdout.write(text)
