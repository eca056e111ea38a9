"""`./stokehold download_model ORG/NAME [--revision R] [--include PATTERN ...] [--name N] [--token T] [--limit MB/S]`"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from models_registry.errors import RegistryError
from models_registry.hub.imports import Detail
from models_registry.hub.services import start_hub_import
from models_registry.management.locations import location_called
from models_registry.models import HubToken, ImportJob, ModelVersion, VersionState

_LOOK_S = 0.5
_BAR = 30


class Command(BaseCommand):
    help = "Fetch a model from the Hub (HF_ENDPOINT), by a worker of the running master; shows how far it is."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repo", help="as the Hub shows it: ORG/NAME")
        parser.add_argument("--revision", default="main", help="branch, tag or commit; default: main")
        parser.add_argument(
            "--include", action="append", default=[], help="files to take, e.g. '*Q4_K_M.gguf'; repeatable"
        )
        parser.add_argument("--name", default="", help="name of the model here; default: the repository's")
        parser.add_argument("--model-version", help="default: the next free number")
        parser.add_argument("--token", help="name of a Hub token that was saved before; default: HF_TOKEN")
        parser.add_argument("--limit", type=float, metavar="MB/S", help="not faster than this")
        parser.add_argument("--location", help="name of the storage location it goes to; default: the default one")
        parser.add_argument("--no-wait", action="store_true", help="start it, and leave")

    def handle(self, *, repo: str, **options: Any) -> None:
        try:
            row = start_hub_import(
                repo,
                revision=options["revision"],
                patterns=options["include"],
                name=options["name"],
                version=options["model_version"],
                token=self._token(options["token"]),
                limit_bytes_per_second=int(options["limit"] * 1e6) if options["limit"] else None,
                location=location_called(options["location"]) if options["location"] else None,
                now=timezone.now(),
            )
        except RegistryError as error:
            raise CommandError(f"{error.message} {error.remedy}") from error
        self.stdout.write(f"{row}: {row.source}")
        if not options["no_wait"]:
            self._watch(row)

    def _token(self, name: str | None) -> HubToken | None:
        if name is None:
            return None
        row = HubToken.objects.filter(name=name).first()
        if row is None:
            raise CommandError(f"There is no token {name!r}: save it in the admin first (Models, Hub tokens).")
        return row

    def _watch(self, row: ModelVersion) -> None:
        try:
            while row.state == VersionState.IMPORTING:
                job = ImportJob.objects.filter(pk=row.pk).first()
                if job is not None:
                    self._tell(line_of(msgspec.convert(job.detail, Detail), paused=job.paused))
                time.sleep(_LOOK_S)
                row.refresh_from_db()
        except KeyboardInterrupt:
            self._tell("")
            self.stdout.write("It goes on without you; its page in the admin can pause or cancel it.")
            return
        self._tell("")
        if row.state == VersionState.FAILED:
            raise CommandError(row.error)
        self.stdout.write(f"{row} is ready: {row.size_bytes / 1e9:.2f} GB, digest {row.digest}")

    def _tell(self, line: str) -> None:
        if sys.stderr.isatty():
            self.stderr.write(f"\r\033[K{line}", ending="")
            self.stderr.flush()


def line_of(detail: Detail, *, paused: bool) -> str:
    """`[#####     ] 45 %  1.20 of 2.67 GB  85.3 MB/s  0:17 left`"""
    share = detail.done_bytes / detail.total_bytes if detail.total_bytes else 0.0
    bar = "#" * int(share * _BAR)
    far = f"{detail.done_bytes / 1e9:.2f} of {detail.total_bytes / 1e9:.2f} GB"
    if paused:
        return f"[{bar:<{_BAR}}] {share:4.0%}  {far}  paused"
    left = "" if detail.eta_s is None else f"  {int(detail.eta_s) // 60}:{int(detail.eta_s) % 60:02} left"
    return f"[{bar:<{_BAR}}] {share:4.0%}  {far}  {detail.bytes_per_second / 1e6:.1f} MB/s{left}"
