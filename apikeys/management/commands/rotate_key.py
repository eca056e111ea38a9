"""`./stokehold rotate_key ID [--overlap-s S]`"""

from __future__ import annotations

import datetime as dt
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from apikeys.errors import KeysError
from apikeys.models import ApiKey
from apikeys.services import rotate_key


class Command(BaseCommand):
    help = "Give a key a new secret and print it, once. The one before stays good for a while."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("key", help="id of the key: the 8 characters after sk-stk-")
        parser.add_argument("--overlap-s", type=int, default=3600, help="seconds for which both are good (3600)")

    def handle(self, *, key: str, overlap_s: int, **options: Any) -> None:
        row = ApiKey.objects.filter(pk=key.removeprefix("sk-stk-")[:8]).first()
        if row is None:
            raise CommandError(f"There is no key {key[:15]!r}. Admin → Keys lists them.")
        try:
            text = rotate_key(row, overlap=dt.timedelta(seconds=overlap_s), now=timezone.now(), actor="rotate_key")
        except KeysError as error:
            raise CommandError(f"{error.message} {error.remedy}") from error
        self.stdout.write(text)
