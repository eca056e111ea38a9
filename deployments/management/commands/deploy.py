"""`manage.py deploy NAME MODEL[:VERSION|@ALIAS]`: deploy a model version, or update the deployment of that name."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from deployments import services
from deployments.models import Deployment
from deployments.specs import parse_parameters
from models_registry.aliases import resolve
from wire.engine import RuntimeKind
from wire.errors import Problem

_POLL_S = 0.5


class Command(BaseCommand):
    help = "Deploy a model version under a public name; the same name again updates it (rolling)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="public model name, as clients send it")
        parser.add_argument("model", help="MODEL:VERSION, MODEL@ALIAS (followed), or MODEL: the newest that is ready")
        parser.add_argument("--engine", default="llamacpp")
        parser.add_argument("--replicas", type=int, default=1)
        parser.add_argument("--param", action="append", default=[], metavar="K=V", help="engine parameter; repeatable")
        parser.add_argument("--runtime", choices=[kind.value for kind in RuntimeKind], default="auto")
        parser.add_argument("--image", default="")
        parser.add_argument("--wait", type=float, default=0, metavar="S", help="wait up to S seconds until it is ready")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            deployment = _deploy(options)
        except Problem as error:
            raise CommandError(f"{error} {error.remedy}") from error
        replicas = f"{deployment.replicas} replica{'' if deployment.replicas == 1 else 's'}"
        self.stdout.write(f"{deployment.name}: revision {deployment.revision.number}, {replicas}")
        if options["wait"]:
            self._wait(deployment, options["wait"])

    def _wait(self, deployment: Deployment, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            deployment.refresh_from_db()
            status = services.status_of(deployment)
            if status.state == services.DeploymentState.READY:
                self.stdout.write(f"{deployment.name}: ready")
                return
            if time.monotonic() >= deadline:
                raise CommandError(f"{deployment.name} is {status.state} after {limit_s:g} s: {status.reason}")
            time.sleep(_POLL_S)


def _deploy(options: dict[str, Any]) -> Deployment:
    named = resolve(options["model"])
    fields = {
        "model_version": named.version,
        "alias": named.alias,
        "engine": options["engine"],
        "replicas": options["replicas"],
        "parameters": parse_parameters(options["engine"], _pairs(options["param"])),
        "runtime": options["runtime"],
        "image": options["image"],
        "running": True,
    }
    now = timezone.now()
    existing = Deployment.objects.filter(name=options["name"], deleted_at__isnull=True).first()
    if existing is None:
        return services.create_deployment(name=options["name"], actor="command line", now=now, **fields)
    return services.update_deployment(existing, if_version=None, actor="command line", now=now, **fields)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts if "=" in text)
    if len(pairs) != len(texts):
        raise CommandError("--param wants NAME=VALUE, each name once")
    return pairs
