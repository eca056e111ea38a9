"""`./stokehold create_management_key USERNAME --name N [--write] [--days D] [--network CIDR ...] [--json]`"""

from __future__ import annotations

import datetime as dt
import json
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from apikeys.errors import KeysError
from apikeys.management_keys import create_management_key


class Command(BaseCommand):
    help = "Make a key for the REST API that acts as a person, and print it, once. It reads only, unless --write."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username", help="whose rights it has")
        parser.add_argument("--name", required=True, help="what the key is for")
        parser.add_argument("--write", action="store_true", help="it may change things, too")
        parser.add_argument("--network", action="append", default=[], help="CIDR its clients come from, repeatable")
        parser.add_argument("--days", type=int, help="good for so many days; default: for ever")
        parser.add_argument("--json", action="store_true", help="id, key and user as JSON")

    def handle(self, *, username: str, name: str, **options: Any) -> None:
        now = timezone.now()
        user = get_user_model().objects.filter(username=username).first()
        if user is None:
            raise CommandError(f"There is no user {username!r}. Make one in the admin, or with createsuperuser.")
        try:
            key, text = create_management_key(
                user,
                name=name,
                read_only=not options["write"],
                allowed_networks=options["network"],
                expires_at=None if options["days"] is None else now + dt.timedelta(days=options["days"]),
                by=None,
                now=now,
            )
        except KeysError as error:
            raise CommandError(f"{error.message} {error.remedy}") from error
        told = {"id": key.pk, "key": text, "user": username, "name": key.name, "read_only": key.read_only}
        self.stdout.write(json.dumps(told) if options["json"] else text)
