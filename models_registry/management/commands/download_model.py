"""`./stokehold download_model ORG/NAME | ms://... | s3://... | https://... [--include PATTERN ...] [--name N] ...`"""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from models_registry.acting import COMMAND_LINE
from models_registry.errors import RegistryError
from models_registry.fetching.work import Detail
from models_registry.importing import start_fetch
from models_registry.management.locations import location_called
from models_registry.models import HubToken, ImportJob, ModelVersion, VersionState

_LOOK_S = 0.5
_BAR = 30


class Command(BaseCommand):
    help = (
        "Fetch a model by a worker of the running master, and show how far it is: from the Hub (ORG/NAME), ModelScope"
        " (ms://ORG/NAME@REVISION), a bucket (s3://BUCKET/PREFIX), or web servers (https://...)."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("source", nargs="+", help="ORG/NAME, ms://..., s3://..., or one or more https://...")
        parser.add_argument("--revision", default="main", help="of the Hub: branch, tag or commit; default: main")
        parser.add_argument(
            "--include", action="append", default=[], help="files to take, e.g. '*Q4_K_M.gguf'; repeatable"
        )
        parser.add_argument("--name", default="", help="name of the model here; needed for https://")
        parser.add_argument("--model-version", help="default: the next free number")
        parser.add_argument("--token", help="name of a Hub token that was saved before; default: HF_TOKEN")
        parser.add_argument("--limit", type=float, metavar="MB/S", help="not faster than this")
        parser.add_argument("--priority", type=int, default=0, help="higher ones come first; default: 0")
        parser.add_argument("--sha256", default="", help="of one https:// file")
        parser.add_argument("--header", action="append", default=[], help="'NAME: VALUE' for https://; repeatable")
        parser.add_argument("--endpoint", default="", help="of s3://; default: AWS")
        parser.add_argument("--region", default="", help="of s3://; default: us-east-1")
        parser.add_argument("--location", help="name of the storage location it goes to; default: the default one")
        parser.add_argument("--no-wait", action="store_true", help="start it, and leave")
        parser.epilog = (
            "Keys of s3:// are read from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN: arguments"
            " would be seen by everybody on this machine. Without them the bucket is asked as nobody."
        )

    def handle(self, *, source: list[str], **options: Any) -> None:
        asked = {
            **self._source(source, options),
            "model": options["name"],
            "version": options["model_version"],
            "patterns": options["include"],
            "priority": options["priority"],
            "location": location_called(options["location"]) if options["location"] else None,
            "limit_bytes_per_second": int(options["limit"] * 1e6) if options["limit"] else None,
        }
        try:
            row = start_fetch(asked, timezone.now(), COMMAND_LINE)
        except RegistryError as error:
            raise CommandError(f"{error.message} {error.remedy}") from error
        self.stdout.write(f"{row}: {row.source}")
        if not options["no_wait"]:
            self._watch(row)

    def _source(self, source: list[str], options: dict[str, Any]) -> dict[str, Any]:
        """What `importing.start_fetch` is asked for."""
        if all(one.startswith(("http://", "https://")) for one in source):
            if not options["name"]:
                raise CommandError("Give --name NAME: URLs tell none. A repository of the Hub is given as ORG/NAME.")
            return {"urls": self._urls(source, options["sha256"]), "headers": _headers(options["header"])}
        if len(source) > 1:
            raise CommandError("Give one source; only of https:// there may be more.")
        if source[0].startswith("s3://"):
            return {
                "s3": {"address": source[0], "endpoint": options["endpoint"], "region": options["region"], **_keys()}
            }
        if source[0].startswith("ms://"):
            return {"modelscope": source[0]}
        token = self._token(options["token"])
        return {"repo": source[0], "revision": options["revision"], "token": token}

    def _urls(self, source: list[str], sha256: str) -> list[dict[str, str]]:
        if sha256 and len(source) > 1:
            raise CommandError("--sha256 is of one file: give one URL.")
        return [{"url": one, "sha256": sha256} for one in source]

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


def _headers(given: list[str]) -> dict[str, str]:
    return {name.strip(): value.strip() for name, _, value in (one.partition(":") for one in given)}


def _keys() -> dict[str, str]:
    names = {"access_key": "AWS_ACCESS_KEY_ID", "secret_key": "AWS_SECRET_ACCESS_KEY"}
    names |= {"session_token": "AWS_SESSION_TOKEN"}
    return {name: os.environ.get(variable, "") for name, variable in names.items()}


def line_of(detail: Detail, *, paused: bool) -> str:
    """`[#####     ] 45 %  1.20 of 2.67 GB  85.3 MB/s  0:17 left`"""
    share = detail.done_bytes / detail.total_bytes if detail.total_bytes else 0.0
    bar = "#" * int(share * _BAR)
    far = f"{detail.done_bytes / 1e9:.2f} of {detail.total_bytes / 1e9:.2f} GB"
    if paused:
        return f"[{bar:<{_BAR}}] {share:4.0%}  {far}  paused"
    left = "" if detail.eta_s is None else f"  {int(detail.eta_s) // 60}:{int(detail.eta_s) % 60:02} left"
    return f"[{bar:<{_BAR}}] {share:4.0%}  {far}  {detail.bytes_per_second / 1e6:.1f} MB/s{left}"
