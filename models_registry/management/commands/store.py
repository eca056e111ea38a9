"""`./stokehold store ...`: where models are kept, from a shell."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from models_registry.errors import RegistryError
from models_registry.location_models import JobState, StorageJob, VersionCopy
from models_registry.locations import copies, jobs, services
from models_registry.management.locations import location_called
from models_registry.models import ModelVersion, VersionState
from models_registry.services import start_import

_LOOK_S = 0.5


class Command(BaseCommand):
    help = "Show and change where models are kept. Copying, moving and verifying is done by a worker of the master."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verbs.add_parser("list", help="locations, how full they are, and what is wrong")
        add = verbs.add_parser("add", help="add a location")
        add.add_argument("name")
        add.add_argument("path", help="a folder on this machine; empty, unless --shared")
        add.add_argument("--shared", action="store_true", help="a folder that servers mount too, e.g. by NFS")
        add.add_argument("--server-path", default="", help="where servers see it; default: the same path")
        add.add_argument("--quota", type=float, metavar="GB", help="not more of ours than this")
        add.add_argument("--read-only", action="store_true", help="it is never written to")
        add.add_argument("--default", action="store_true", help="imports go there when nobody says where")
        for verb, help_text in (
            ("look", "look now whether it is there, and how full"),
            ("default", "make it the one that imports go to"),
            ("mark", "take what is at its path for this location, after its marker file was lost"),
            ("remove", "forget a location that no version lies in"),
        ):
            verbs.add_parser(verb, help=help_text).add_argument("name")
        path = verbs.add_parser("path", help="say where a location's files were brought to")
        path.add_argument("name")
        path.add_argument("path")
        where = verbs.add_parser("where", help="where versions lie, and how whole they are")
        where.add_argument("model", nargs="?", help="MODEL:VERSION; default: all")
        copy = verbs.add_parser("copy", help="copy a version to a location too")
        copy.add_argument("model", metavar="MODEL:VERSION")
        copy.add_argument("to", metavar="LOCATION")
        move = verbs.add_parser("move", help="move versions from one location to another")
        move.add_argument("source", metavar="FROM")
        move.add_argument("to", metavar="TO")
        move.add_argument("model", nargs="?", metavar="MODEL:VERSION", help="default: all that lie in FROM")
        place = verbs.add_parser("in-place", help="make a folder on shared storage a version, where it is")
        place.add_argument("name", help="name of the model")
        place.add_argument("path", type=Path, help="the folder, or one file, as this machine sees it")
        place.add_argument("location", help="the shared location that it lies on")
        verify = verbs.add_parser("verify", help="read a version's copies again, and repair them")
        verify.add_argument("model", metavar="MODEL:VERSION")
        for one in (copy, move, place, verify):
            one.add_argument("--no-wait", action="store_true", help="start it, and leave")

    def handle(self, *, verb: str, **options: Any) -> None:
        asked = Namespace(**options)
        try:
            _VERBS[verb](self, asked)
        except RegistryError as error:
            raise CommandError(f"{error.message} {error.remedy}") from error

    def list(self, asked: Namespace) -> None:
        for row in services.locations():
            marks = [word for word, is_it in (("default", row.is_default), ("read-only", row.read_only)) if is_it]
            free = "" if row.free_bytes is None else f"  {row.free_bytes / 1e9:.1f} GB free"
            quota = f" of {row.quota_bytes / 1e9:.1f}" if row.quota_bytes else ""
            facts = f"{row.name:16} {row.kind:7} {row.root}  {row.used_bytes / 1e9:.1f}{quota} GB of models{free}"
            self.stdout.write(f"{facts}  {', '.join(marks)}".rstrip())
            if row.error:
                self.stderr.write(f"{row.name}: {row.error}")

    def add(self, asked: Namespace) -> None:
        row = services.add_location(
            asked.name,
            asked.path,
            kind="shared" if asked.shared else "store",
            server_path=asked.server_path,
            quota_bytes=int(asked.quota * 1e9) if asked.quota else None,
            read_only=asked.read_only,
            is_default=asked.default,
            now=timezone.now(),
        )
        self.stdout.write(f"{row} is added: {row.free_bytes / 1e9:.1f} GB are free.")

    def look(self, asked: Namespace) -> None:
        row = services.look_at(location_called(asked.name), timezone.now())
        if row.error:
            raise CommandError(row.error)
        self.stdout.write(
            f"{row} is there: {row.used_bytes / 1e9:.1f} GB of models, {row.free_bytes / 1e9:.1f} GB free."
        )

    def default(self, asked: Namespace) -> None:
        self.stdout.write(f"Imports go to {services.change_location(location_called(asked.name), is_default=True)}.")

    def mark(self, asked: Namespace) -> None:
        row = services.mark_location(location_called(asked.name), timezone.now())
        self.stdout.write(f"{row.root} is {row}.")

    def remove(self, asked: Namespace) -> None:
        services.remove_location(location_called(asked.name))
        self.stdout.write(f"{asked.name} is removed.")

    def path(self, asked: Namespace) -> None:
        row = services.change_location(location_called(asked.name), path=asked.path)
        self.stdout.write(f"{row} is at {row.root}.")

    def where(self, asked: Namespace) -> None:
        copies.adopt()
        rows = VersionCopy.objects.select_related("version__model", "location").order_by("version", "location__name")
        for copy in rows.filter(version=_version(asked.model)) if asked.model else rows:
            verified = f"{copy.verified_at:%Y-%m-%d}" if copy.verified_at else "never"
            kind = "in place" if copy.in_place else "copy"
            self.stdout.write(
                f"{copy.version}  {copy.location}  {kind}  {copy.state}  verified {verified}  {copy.path}"
            )
            if copy.problem:
                self.stderr.write(f"{copy}: {copy.problem}")

    def copy(self, asked: Namespace) -> None:
        self._watch([jobs.start_copy(_version(asked.model), location_called(asked.to), now=timezone.now())], asked)

    def move(self, asked: Namespace) -> None:
        source, to, now = location_called(asked.source), location_called(asked.to), timezone.now()
        if asked.model is None:
            started = jobs.start_moves(source, to, now=now)
        else:
            copy = copies.copies_of(_version(asked.model)).filter(location=source).first()
            if copy is None:
                raise CommandError(f"{asked.model} does not lie in {source}.")
            started = [jobs.start_move(copy, to, now=now)]
        self._watch(started, asked)

    def in_place(self, asked: Namespace) -> None:
        where = location_called(asked.location)
        row = start_import(asked.name, asked.path, location=where, in_place=True, now=timezone.now())
        while row.state == VersionState.IMPORTING and not asked.no_wait:
            time.sleep(_LOOK_S)
            row.refresh_from_db()
        if row.state == VersionState.FAILED:
            raise CommandError(row.error)
        self.stdout.write(f"{row} is {row.state}: {asked.path}")

    def verify(self, asked: Namespace) -> None:
        for copy in copies.copies_of(_version(asked.model)):
            self._watch([jobs.start_verify(copy, now=timezone.now())], asked)

    def _watch(self, started: list[StorageJob], asked: Namespace) -> None:
        if asked.no_wait:
            self.stdout.write(f"{len(started)} started.")
            return
        failed = 0
        for job in started:
            try:
                failed += not self._wait(job)
            except KeyboardInterrupt:
                self.stdout.write("It goes on without you; `store list` and the admin show what it comes to.")
                return
        if failed:
            raise CommandError(f"{failed} of {len(started)} failed.")

    def _wait(self, job: StorageJob) -> bool:
        """Whether it was done."""
        while job.is_under_way:
            if sys.stderr.isatty():
                self.stderr.write(f"\r\033[K{job} {job.share:.0%}", ending="")
            time.sleep(_LOOK_S)
            job.refresh_from_db()
        self.stdout.write(f"{job}: {job.state}. {job.error}".rstrip(". ") + ".")
        return job.state == JobState.DONE


_VERBS = {
    "list": Command.list,
    "add": Command.add,
    "look": Command.look,
    "default": Command.default,
    "mark": Command.mark,
    "remove": Command.remove,
    "path": Command.path,
    "where": Command.where,
    "copy": Command.copy,
    "move": Command.move,
    "in-place": Command.in_place,
    "verify": Command.verify,
}


def _version(text: str) -> ModelVersion:
    name, _, number = text.rpartition(":")
    row = ModelVersion.objects.filter(model__name=name, version=number).select_related("model").first()
    if row is None:
        raise CommandError(f"There is no version {text!r}: give MODEL:VERSION.")
    return row
