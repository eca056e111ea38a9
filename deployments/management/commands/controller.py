"""`manage.py controller`: decides where instances run, when it holds the lease."""

from __future__ import annotations

import signal
from threading import Event
from typing import Any

from django.core.management.base import BaseCommand

from deployments.controller import run_controller


class Command(BaseCommand):
    help = "Run the control loop. Several may run; one decides. SIGTERM ends it and gives the lease back."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        stop = Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        run_controller(stop)
