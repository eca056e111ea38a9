"""`./stokehold reseal_secrets`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from deployments.models import Provider
from fleet.sealed import Unreadable, reseal
from models_registry.models import HubToken


class Command(BaseCommand):
    help = "Encrypt stored secrets anew under the first of STOKEHOLD_FIELD_KEYS; then the others may go."

    def handle(self, **options: Any) -> None:
        try:
            with transaction.atomic():  # all or none: a key may only be dropped when nothing needs it
                rows = list(Provider.objects.select_for_update().exclude(sealed_key=""))
                for row in rows:
                    row.sealed_key = reseal(row.sealed_key)
                    row.save(update_fields=["sealed_key"])
                tokens = list(HubToken.objects.select_for_update())
                for token in tokens:
                    token.sealed_token = reseal(token.sealed_token)
                    token.save(update_fields=["sealed_token"])
        except Unreadable as error:
            raise CommandError(f"{error.message} {error.remedy}") from error
        self.stdout.write(f"{len(rows) + len(tokens)} secrets are sealed by the first key.")
