"""`./stokehold join_token`: a token, and the command for the machine that joins with it."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from fleet.join import join_command, unreachable
from fleet.models import Role
from fleet.services import FleetError, create_join_token


class Command(BaseCommand):
    help = "Make a single-use join token for a new server (or gateway), and show the command to run there."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--role", choices=Role.values, default=Role.AGENT.value)
        parser.add_argument("--ttl", type=float, default=60.0, metavar="MINUTES", help="minutes it is good for (60)")
        parser.add_argument("--note", default="", help="what it is for; shown in the admin")
        parser.add_argument("--json", action="store_true", help="print one JSON object instead")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            token = create_join_token(
                role=options["role"],
                ttl=dt.timedelta(minutes=options["ttl"]),
                note=options["note"],
                now=timezone.now(),
            )
        except FleetError as error:
            raise CommandError(f"{error.message}. {error.remedy}") from error
        command = join_command(options["role"], token)
        if options["json"]:
            self.stdout.write(json.dumps({"token": token, "command": command, "master": settings.LINK_BASE_URL}))
            return
        self.stdout.write(token)
        self.stdout.write(f"\nRun this on the new machine within {options['ttl']:g} minutes:\n\n  {command}\n")
        if why := unreachable():
            self.stderr.write(f"No other machine can join yet. {why}")
