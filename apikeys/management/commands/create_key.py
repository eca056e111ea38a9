"""`./stokehold create_key --project P --name N [--model M ...] [--endpoint E ...] [--network CIDR ...]`"""

from __future__ import annotations

import datetime as dt
import json
from argparse import ArgumentParser, ArgumentTypeError
from decimal import Decimal
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from apikeys.checks import LIMIT_FIELDS
from apikeys.errors import KeysError
from apikeys.models import Project
from apikeys.money import to_nano
from apikeys.services import create_key, create_project
from wire.feed import ENDPOINT_GROUPS


class Command(BaseCommand):
    help = "Make a key and print it, once. The project is made when it is new."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--project", required=True, help="name of the project")
        parser.add_argument("--name", required=True, help="what the key is for")
        parser.add_argument("--model", action="append", default=[], help="model it may use, repeatable; default: all")
        parser.add_argument(
            "--endpoint", action="append", default=[], help=f"of {', '.join(ENDPOINT_GROUPS)}; repeatable"
        )
        parser.add_argument("--network", action="append", default=[], help="CIDR its clients come from, repeatable")
        parser.add_argument("--service", default="", help="program it belongs to, when it is no person's")
        parser.add_argument("--days", type=int, help="good for so many days; default: for ever")
        for field in LIMIT_FIELDS:
            if field != "cost_per_month":
                parser.add_argument("--" + field.replace("_", "-"), type=int, metavar="N")
        parser.add_argument("--cost-per-month", type=_money, metavar="AMOUNT")
        parser.add_argument("--json", action="store_true", help="id, key and project as JSON")

    def handle(self, *, project: str, name: str, model: list[str], **options: Any) -> None:
        now = timezone.now()
        try:
            with transaction.atomic():  # a key that is refused leaves no project behind
                tenant = Project.objects.filter(name=project).first() or create_project(project)
                key, text = create_key(
                    project=tenant,
                    name=name,
                    allowed_models=model,
                    allowed_endpoints=options["endpoint"],
                    allowed_networks=options["network"],
                    service=options["service"],
                    expires_at=None if options["days"] is None else now + dt.timedelta(days=options["days"]),
                    actor="create_key",
                    now=now,
                    **{field: options[field] for field in LIMIT_FIELDS},
                )
        except KeysError as error:
            raise CommandError(f"{error.message} {error.remedy}") from error
        told = {"id": key.pk, "key": text, "project": str(tenant.pk), "name": key.name}
        self.stdout.write(json.dumps(told) if options["json"] else text)


def _money(text: str) -> int:
    try:
        return to_nano(Decimal(text))
    except ArithmeticError as error:
        raise ArgumentTypeError(f"not an amount: {text!r}") from error
